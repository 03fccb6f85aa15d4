"""Where base models come from: a folder, a GGUF file, a repository of a hub. All end as a folder."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith import gguf, hub
from tunesmith.errors import InvalidArgument, Unavailable

OnProgress = Callable[[int, int], None]
_NO_ID = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True)
class Origin:
    """A folder of a model and what is known of where it came from; `name` is what its id may be made of."""

    folder: Path
    name: str
    source: str
    license: str = ""
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def model_id(self) -> str:
        """Returns an id made of the name."""
        return _NO_ID.sub("-", self.name.lower()).strip("-._")[:63]


@contextmanager
def opened(source: str | Path, on_progress: OnProgress | None = None) -> Iterator[Origin]:
    """Gives the folder of `FOLDER`, `FILE.gguf` or `hf:ORG/NAME@REVISION`. Blocks; what was made is deleted.

    Raises InvalidArgument, NotFound or Unavailable when there is no such model.
    """
    text = str(source)
    if not text.startswith(hub.PREFIX) and not text.lower().endswith(".gguf"):
        folder = Path(source)
        yield Origin(folder, folder.resolve().name, text)
        return
    with tempfile.TemporaryDirectory(prefix="tunesmith-model-") as made:
        if text.startswith(hub.PREFIX):
            yield _fetched(text, Path(made), on_progress)
        else:
            yield _converted(Path(source), Path(made) / "model")


def _fetched(text: str, folder: Path, on_progress: OnProgress | None) -> Origin:
    repo = hub.Repo.parse(text)
    found = hub.fetch(repo, folder, on_progress)
    facts = {"hub.repository": repo.name, "hub.commit": found.commit}
    if found.left_out:
        facts["hub.left_out"] = ", ".join(found.left_out)[:1000]
    return Origin(folder, repo.name.partition("/")[2], f"{hub.PREFIX}{repo.name}@{found.commit}",
                  found.license, facts)  # fmt: skip


def _converted(file: Path, folder: Path) -> Origin:
    """Reads the header first: it costs nothing and finds what is broken before a minute of conversion."""
    header = gguf.read(file)
    if importlib.util.find_spec("tunesmith_trainer") is None:
        raise Unavailable(
            "PROGRAM_MISSING",
            "converting GGUF needs the trainer's libraries",
            remedy="pip install 'tunesmith[trainer]', or import it on a machine that has them",
        )
    command = [sys.executable, "-m", "tunesmith_trainer.convert", "--gguf", str(file), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["the converter said nothing"])[-1]
        raise InvalidArgument(
            "BASE_MODEL_INVALID",
            f"{file.name} ({header.architecture or 'unknown'}) cannot be converted: {last[:500]}",
            field="file",
            value=file,
            remedy="transformers must know the architecture and the quantisation; else import safetensors",
        )
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    facts = {
        "gguf.architecture": header.architecture,
        "gguf.name": header.name,
        "gguf.context_length": str(header.context_length or ""),
        "gguf.parameters": str(header.num_parameters),
        "gguf.quantization": header.quantization,
        "gguf.license": header.license,
        "gguf.sha256": digest,
    }
    told = {key: value for key, value in facts.items() if value}
    return Origin(folder, file.stem, file.name, header.license, told)
