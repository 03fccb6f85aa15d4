"""The same through the doors people use: command line and REST, on a whole platform."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.registry.governing import LORA
from tests.registry.support import base_model_files, safetensors
from tests.support.platform import Platform, embedded
from tunesmith import FailedPrecondition, InvalidArgument
from tunesmith.cli import main


def _folder(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir()
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    (tmp_path / "platform").mkdir()
    with embedded(tmp_path / "platform") as running:
        yield running


def test_a_version_is_registered_governed_taken_away_and_verified(
    platform: Platform,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNESMITH_ADDRESS", platform.address)
    monkeypatch.setenv("TUNESMITH_TOKEN", platform.token)
    base = _folder(tmp_path / "base", base_model_files())
    files = {
        "adapter_config.json": json.dumps(LORA).encode(),
        "adapter_model.safetensors": safetensors(a=(2, 2)),
    }
    adapter = _folder(tmp_path / "adapter", files)

    def run(*words: str, code: int = 0) -> str:
        found = main(list(words))
        said = capsys.readouterr()
        assert found == code, (words, said)
        return said.out + said.err

    run("models", "import-base", str(base), "--id", "tiny", "--license", "mit")
    assert "registered bot@1" in run("models", "register", str(adapter), "bot", "--base", "tiny")
    (adapter / "more.json").write_text("{}")
    run("models", "register", str(adapter), "bot", "--base", "tiny")
    run("models", "alias", "bot@2", "champion")
    run("models", "card", "bot", "--tag", "support", "--intended-use", "Answers customers.")
    assert "Answers customers." in run("models", "card", "bot@champion")
    assert "bot" in run("models", "search", "customers", "--tag", "support")

    assert "Production" in run("models", "stage", "bot@1", "production")
    run("models", "policy", "bot", "--approval", "--gate", "texts:exact_match>=0.8")
    assert "failed" in run("models", "gates", "bot@champion", code=1)
    assert "was not evaluated" in run("models", "stage", "bot@champion", "production", code=1)
    run("models", "policy", "bot", "--no-gates")
    asked = run("models", "stage", "bot@champion", "production")
    handle = asked.rsplit(None, 1)[-1]
    assert handle.startswith("bot/")
    assert "cannot approve" in run("models", "approve", handle, code=1)
    run("models", "reject", handle, "--reason", "not yet")
    assert "rejected" in run("models", "promotions", "bot")
    run("models", "policy", "bot", "--no-approval")
    run("models", "stage", "bot@champion", "production")
    assert "bot@1 is now Production" in run("models", "rollback", "bot")
    tree = run("models", "lineage", "bot@1")
    assert all(word in tree for word in ("base_model", "tiny", "stage_change"))

    assert "intact" in run("verify", "bot@1")
    out = tmp_path / "out"
    run("models", "export", "bot@1", str(out))
    assert "intact" in run("verify", str(out))
    (out / "adapter_config.json").write_bytes(b"{}")
    assert "adapter_config.json" in run("verify", str(out), code=1)
    assert "would be deleted" in run("models", "gc")
    assert "no job is known" in run("reproduce", "bot@1", code=1)
    _by_rest(platform, tmp_path)
    _flipped(platform, run)


def _by_rest(platform: Platform, tmp_path: Path) -> None:
    with platform.rest() as rest:
        name = "projects/default/models/bot/versions/1"
        whole = rest.get(f"/api/v1/{name}:download")
        assert (whole.status_code, whole.headers["accept-ranges"]) == (200, "bytes")
        rest_of = rest.get(f"/api/v1/{name}:download", headers={"range": "bytes=1000-"})
        assert (rest_of.status_code, rest_of.content) == (206, whole.content[1000:])
        size = len(whole.content)
        assert rest_of.headers["content-range"] == f"bytes 1000-{size - 1}/{size}"
        stale = rest.get(f"/api/v1/{name}:download", headers={"range": "bytes=5-", "if-range": '"another"'})
        assert (stale.status_code, stale.json()["reason"]) == (409, "REVISION_STALE")
        found = rest.get("/api/v1/projects/default/models:search", params={"query": "customers"}).json()
        assert [each["name"] for each in found["results"]] == ["projects/default/models/bot"]
        graph = rest.get("/api/v1/projects/default/lineage", params={"name": name}).json()
        assert {node["kind"] for node in graph["nodes"]} >= {"model", "base_model"}
        events = rest.get(f"/api/v1/{name}:verify")
        assert '"intact":true' in events.text
        assert rest.get("/api/v1/projects/default/receipts").json()["receipts"][0]["signature"]
        moved = rest.post(f"/api/v1/{name}:setStage", json={"stage": "MODEL_STAGE_NONE"})
        assert (moved.status_code, moved.json()["reason"]) == (409, "STAGE_IMPOSSIBLE")
        seen = {"stage": "MODEL_STAGE_ARCHIVED", "expected_stage": "MODEL_STAGE_STAGING"}
        late = rest.post(f"/api/v1/{name}:setStage", json=seen)
        assert (late.status_code, late.json()["reason"]) == (409, "REVISION_STALE")
        memory = rest.get("/api/v1/projects/default/baseModels/tiny").json()
        assert memory["base_model"]["license"] == "mit"
    with platform.client() as client:
        client.exports.download("bot@1", tmp_path / "again.tar")
        assert (tmp_path / "again.tar").read_bytes() == whole.content
        part = tmp_path / "third.tar.part"
        part.write_bytes(whole.content[:700])
        part.with_name("third.tar.part.etag").write_text(whole.headers["etag"].strip('"'))
        heard: list[int] = []
        client.exports.download(
            "bot@1", tmp_path / "third.tar", on_progress=lambda done, _: heard.append(done)
        )
        assert (tmp_path / "third.tar").read_bytes() == whole.content
        assert heard[0] == 700, "it went on where it stopped"
        with pytest.raises(InvalidArgument):
            client.versions.set_alias("bot@1", "production")
        with pytest.raises(FailedPrecondition, match="was taken away"):
            client.versions.set_alias("bot@1", "seen", expected="2")
        assert "seen" in client.versions.set_alias("bot@1", "seen", expected="none").aliases
        assert "seen" in client.versions.set_alias("bot@1", "seen", expected="2").aliases, "it is so already"


def _flipped(platform: Platform, run: Callable[..., str]) -> None:
    with platform.client() as client:
        file = client.models.version("bot@1").manifest.files[0]
    (stored,) = (platform.root / "data" / "blobs" / "sha256" / file.sha256[:2]).glob(file.sha256)
    stored.chmod(0o644)
    data = stored.read_bytes()
    stored.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    said = run("verify", "bot@1", code=1)
    assert f"projects/default/models/bot/versions/1 {file.path}" in " ".join(said.split())
