"""What becomes of a trained version: exported with its curves, merged, pushed; on a platform."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.support.jobs import spec, wait_points, wait_state
from tests.support.platform import Platform
from tunesmith import InvalidArgument

_SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def trained(embedded_platform: Platform) -> Any:
    """A version of `system` with curves of both losses."""
    with embedded_platform.client() as client:
        wanted = spec(20, learning_rate=3e-2, eval_every_steps=5, eval_fraction=0.2)
        job = wait_state(client, client.jobs.submit(wanted).name, "SUCCEEDED")
        wait_points(client, job.name, 20)
        return client.models.version(job.proto.model_version)


def test_an_export_has_the_curves_and_a_merged_one_loads_by_itself(
    embedded_platform: Platform, trained: Any, tmp_path: Path
) -> None:
    platform, name = embedded_platform, f"system@{trained.version}"
    done = platform.run("models", "export", name, str(tmp_path / "plain"))
    assert done.returncode == 0, done.stderr
    _check_picture(tmp_path / "plain")
    merged = platform.run(
        "models", "export", name, str(tmp_path / "merged"), "--format", "merged", seconds=400
    )
    assert merged.returncode == 0, merged.stderr
    assert f"{name} as system-merged@1" in " ".join(merged.stdout.split())
    _check_picture(tmp_path / "merged")  # of the job that trained it, not of the one that merged
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert _loads(tmp_path / "merged")
    single = tmp_path / "bot.gguf"
    written = platform.run("models", "export", name, str(single), "--format", "gguf", "--weights", "float32")
    assert written.returncode == 0, written.stderr
    assert _answers(tmp_path, gguf_file=single.name) == _answers(tmp_path / "merged")
    twice = platform.run("models", "export", name, str(single), "--format", "gguf")
    assert (twice.returncode, "is there already" in twice.stderr) == (1, True)
    again = platform.run("models", "merge", name, "--json")
    assert json.loads(again.stdout)["version"] == "1", "what was merged before is taken"
    assert "intact" in platform.run("verify", str(tmp_path / "merged")).stdout
    full = platform.run("models", "export", name, str(tmp_path / "plain"))
    assert (full.returncode, "is not empty" in full.stderr) == (1, True)


def _check_picture(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "](curves.svg)" in card
    assert card.index("(curves.svg)") < card.index(
        "## Training metrics" if "## Training m" in card else "## Use"
    )
    root = ElementTree.fromstring((folder / "curves.svg").read_text())
    words = [each.text or "" for each in root.iter(f"{_SVG}text")]
    assert any(word.startswith("train/loss, last ") for word in words)
    assert any(word.startswith("eval/loss, last ") for word in words)
    assert {"step", "loss"} <= set(words)


def _answers(folder: Path, **how: Any) -> list[list[float]]:
    """What a model says of a few tokens, loaded by plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32, **how)
    with torch.no_grad():
        found: list[list[float]] = model(torch.tensor([[5, 6, 7, 8]])).logits[0].tolist()
    return found


def _loads(folder: Path) -> bool:
    from transformers import AutoModelForCausalLM

    return bool(AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).num_parameters())


def test_a_version_is_pushed_to_a_place_of_files_once(
    embedded_platform: Platform, trained: Any, tmp_path: Path
) -> None:
    import fsspec

    name, disk = f"system@{trained.version}", tmp_path / "disk" / "bot"
    done = embedded_platform.run("models", "push", name, f"file://{disk}")
    assert done.returncode == 0, done.stderr
    assert "intact" in embedded_platform.run("verify", str(disk)).stdout
    assert (disk / "curves.svg").exists()
    twice = embedded_platform.run("models", "push", name, f"file://{disk}")
    assert (twice.returncode, "something is there already" in twice.stderr) == (1, True)
    with embedded_platform.client() as client:
        assert client.exports.push(name, "memory://shelf/bot") == "memory://shelf/bot"
        stored = {path.rpartition("/")[2] for path in fsspec.filesystem("memory").find("/shelf/bot")}
        assert stored == {path.name for path in disk.iterdir()}
        for bad in ("ssh://host/x", "s3://key@bucket/x", "file:///a/../b", "/plain/path", "http://x/y"):
            with pytest.raises(InvalidArgument) as refused:
                client.exports.push(name, bad)
            assert refused.value.reason == "URL_REFUSED"
