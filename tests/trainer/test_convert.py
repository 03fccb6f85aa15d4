"""Base models from a folder or the hub: whole and safe, or refused with a remedy and nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith_trainer import artifact


def convert(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    return subprocess.run(
        [sys.executable, "-m", "tunesmith_trainer.convert", *arguments],
        env={**kept, **env}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_folder_becomes_an_artifact_of_what_a_model_needs(base: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in base.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "notes.csv").write_text("not of the model\n")
    done = convert("--folder", str(source), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    made = artifact.verify(tmp_path / "out", done.stdout.strip())
    assert {path.name for path in made.path.iterdir()} == {path.name for path in base.iterdir()}


@pytest.mark.parametrize("poison", ["evil.py", "pytorch_model.bin"])
def test_unsafe_folder_is_refused(base: Path, tmp_path: Path, poison: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in base.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / poison).write_bytes(b"x")
    done = convert("--folder", str(source), "--out", str(tmp_path / "out"))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert poison in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_unreachable_hub_is_named_with_the_way_around(tmp_path: Path) -> None:
    with socket.socket() as probe:  # bound and not listening: whoever calls is refused at once
        probe.bind(("127.0.0.1", 0))
        hub = f"http://127.0.0.1:{probe.getsockname()[1]}"
        done = convert(
            "--hf", "someone/model", "--out", str(tmp_path / "out"),
            HF_ENDPOINT=hub, HF_HOME=str(tmp_path / "cache"), NO_PROXY="127.0.0.1",
        )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "someone/model cannot be fetched" in done.stderr
    assert "--folder" in done.stderr
    assert not (tmp_path / "out").exists()
