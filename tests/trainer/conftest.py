"""One tiny model, one dataset and one trainer-starting process for all tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "trainer"))

from tests.trainer import support
from tests.trainer.support import Trainer, Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def base(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base model; the zygote imports torch at the same time."""
    from tunesmith_trainer import tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.make(folder)
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.write_dataset(tmp_path_factory.mktemp("datasets") / "trains", support.CONVERSATIONS)


@pytest.fixture
def make_run(tmp_path: Path, base: Path, dataset: Path) -> Callable[..., Path]:
    """Make a run folder: `make_run(spec, name=…, dataset=…, base=…, any field of run.json)`."""

    def make(job: dict[str, Any], name: str = "run", **fields: Any) -> Path:
        sources = (fields.pop("base", base), fields.pop("dataset", dataset))
        return support.make_run(tmp_path / name, *sources, job, **fields)

    return make


@pytest.fixture
def start(zygote: Zygote) -> Iterator[Callable[..., Trainer]]:
    """Start a trainer in a run folder; what the test leaves running is killed."""
    started: list[Trainer] = []

    def begin(run: Path, **options: Any) -> Trainer:
        started.append(zygote.start(run, **options))
        return started[-1]

    yield begin
    for trainer in started:
        if Path(f"/proc/{trainer.pid}").exists():
            trainer.kill()


@pytest.fixture
def train(start: Callable[..., Trainer]) -> Callable[..., int]:
    """Run a trainer to its end; gives the exit code."""
    return lambda run, **options: start(run, **options).end()
