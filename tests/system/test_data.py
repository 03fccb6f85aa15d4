"""Data from the command line to the weights: a template is what the model learns; uploads go on over REST."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import spec, wait_state
from tests.support.platform import Platform, embedded
from tunesmith import Client, blobs

TEMPLATE = {"prompt": "what is {{ left }} plus {{ right }}?", "completion": "{{ left + right }}"}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with the tiny model."""
    with embedded(tmp_path_factory.mktemp("data")) as platform:
        platform.load_inputs()
        yield platform


def _said(platform: Platform, *words: str) -> str:
    done = platform.run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_learns_what_the_template_makes_of_records(platform: Platform, tmp_path: Path) -> None:
    rows = [{"left": n, "right": n + 1, "id": f"r{n}"} for n in range(40)]
    rendered = [{"prompt": f"what is {n} plus {n + 1}?", "completion": f"{2 * n + 1}"} for n in range(40)]
    for name, content in (("records", rows), ("rendered", rendered)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
        _said(platform, "datasets", "import", str(path), *(["--as", "record"] if name == "records" else []))
    parts = tmp_path / "parts.yaml"
    parts.write_text(json.dumps(TEMPLATE))
    said = _said(platform, "prompts", "create", "sums", "--file", str(parts), "--dataset", "records")
    assert "sums@1" in said
    shown = _said(platform, "prompts", "render", "sums", "--dataset", "records", "--rows", "1")
    assert "what is 0 plus 1?" in shown
    seen = ("--base", "tiny", "--template", "sums")
    preview = _said(platform, "datasets", "preview", "records", *seen, "--limit", "1")
    assert "⟦1<|im_end|>⟧" in preview
    stats = _said(platform, "datasets", "stats", "records", *seen, "--json")
    assert json.loads(stats)["tokens"]["num_errors"] == "0"
    with platform.client() as client:
        refused = client.jobs.submit({**spec(4), "dataset": "records"})
        assert wait_state(client, refused.name, "FAILED").proto.failure.reason == "TEMPLATE_MISSING"
        made = [
            wait_state(client, client.jobs.submit({**spec(4), **given}).name, "SUCCEEDED").proto
            for given in ({"dataset": "records", "prompt_template": "sums"}, {"dataset": "rendered"})
        ]
        assert made[0].prompt_template.name.endswith("prompts/sums/versions/1")
        assert made[0].progress.loss == made[1].progress.loss, "the same text is the same training"
        manifests = [client.models.version(job.model_version).manifest for job in made]
    weights = [{f.path: f.sha256 for f in m.files}["adapter_model.safetensors"] for m in manifests]
    assert weights[0] == weights[1]
    assert manifests[0].properties["prompt_template_digest"] == made[0].prompt_template.digest
    assert "prompt_template_digest" not in manifests[1].properties


def test_an_upload_breaks_off_and_goes_on_over_rest(platform: Platform) -> None:
    content = b"".join(json.dumps({"text": f"row {n}"}).encode() + b"\n" for n in range(50_000))
    digest = hashlib.sha256(content).hexdigest()
    with platform.rest() as rest:
        start = {"total_bytes": len(content), "request_id": "by-hand"}
        upload = rest.post("/api/v1/uploads", json=start).json()["upload"]["upload"]
        path, half = f"/api/v1/uploads/{upload}", len(content) // 2

        def put(first: int, data: bytes) -> dict[str, str]:
            span = {"content-range": f"bytes {first}-{first + len(data) - 1}/*"}
            answer: dict[str, str] = rest.put(path, content=data, headers=span).json()
            return answer

        put(0, content[:half])
        assert put(half + 1, content[half + 1 :])["reason"] == "UPLOAD_OFFSET"
        assert rest.put(f"{path}?offset=x", content=b"x").status_code == 400
        assert rest.get(path).json()["upload"]["size_bytes"] == str(half)
        put(half, content[half:])
        assert rest.post(f"{path}:finish", json={"sha256": digest}).json()["digest"] == digest
        wanted = {"dataset_id": "by-hand", "source_digest": digest}
        with rest.stream("POST", "/api/v1/projects/default/datasets:runImport", json=wanted) as answer:
            told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
        name = told[-2]["result"]["version"]["name"]
        exported = rest.get(f"/api/v1/{name}:export")
        assert exported.content == content.replace(b'": ', b'":')
        assert "by-hand-1.jsonl" in exported.headers["content-disposition"]


def test_the_client_goes_on_where_it_died(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "WORTH_RESUMING", 0)
    path = tmp_path / "large.jsonl"
    path.write_bytes(b"".join(json.dumps({"text": f"large {n}"}).encode() + b"\n" for n in range(300_000)))
    size = path.stat().st_size

    class Died(Exception):
        """A client that is killed."""

    def die(done: int, total: int) -> None:
        if done > size // 2:
            raise Died

    with platform.client() as client, pytest.raises(Died):
        client.datasets.import_file(path, "large", on_progress=die)
    seen: list[int] = []
    with platform.client() as client:
        answer = client.datasets.import_file(path, "large", on_progress=lambda done, _: seen.append(done))
        assert answer.version.num_rows == 300_000
        assert seen[0] > 0, "what arrived is not sent again"
        copy = tmp_path / "copy.jsonl"
        client.datasets.export("large", copy)
    assert copy.read_bytes() == path.read_bytes().replace(b'": ', b'":')
    assert isinstance(client, Client)
