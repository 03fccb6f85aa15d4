"""Where an attempt begins: the newest of its checkpoints, the given one and the snapshots."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tunesmith_trainer import artifact, snapshot, writer
from tunesmith_trainer.artifact import DamagedError
from tunesmith_trainer.failure import FailureClass, TrainerError
from tunesmith_trainer.group import Group
from tunesmith_trainer.identity import Identity
from tunesmith_trainer.report import Reporter, log
from tunesmith_trainer.run import Run
from tunesmith_trainer.state import PARTIAL, Progress, Tensors

CHECKPOINT, SNAPSHOT = "checkpoint", "snapshot"
_UNKNOWN = -1  # a place in the run; verification tells what is wrong with a state that has none


@dataclass(frozen=True, slots=True)
class Found:
    """A state to go on from. `own`: it is a checkpoint of this run folder. `drift`: what differs."""

    progress: Progress
    tensors: Tensors
    origin: str
    own: bool
    drift: list[str]


@dataclass(frozen=True, slots=True)
class _Candidate:
    position: tuple[int, int]
    load: Callable[[], Found]


def newest(run: Run, identity: Identity, reporter: Reporter) -> Found | None:
    """The newest whole state; None when there is none at all.

    Raises RESUME_MISMATCH if it belongs to something else, INFRA if the given checkpoint is damaged and there
    is nothing else: starting anew then would silently throw work away.
    """
    found = [*_snapshots(run, identity, reporter), *_checkpoints(run, identity)]
    # Sorting is stable: of two as new the snapshot is taken, which is read faster.
    for candidate in sorted(found, key=lambda item: item.position, reverse=True):
        try:
            return candidate.load()
        except DamagedError as error:
            step = candidate.position[0]
            log(reporter, "warning", f"the checkpoint of step {step} is damaged and skipped: {error}")
    if run.checkpoint is not None:
        raise TrainerError(
            FailureClass.INFRA,
            "CHECKPOINT_DAMAGED",
            f"{run.checkpoint.path} is damaged",
            "fetch the checkpoint again",
        )
    return None


def outline(found: Found) -> dict[str, Any]:
    """What the other ranks must know of a state to receive it."""
    tensors = [[name, snapshot.dtype_name(item), list(item.shape)] for name, item in found.tensors.items()]
    return {"progress": found.progress.to_json(), "origin": found.origin, "tensors": tensors}


def share(group: Group, told: dict[str, Any], found: Found | None, device: torch.device) -> Tensors:
    """Rank 0's tensors, on every rank."""
    if found is not None and group.alone:
        return found.tensors
    shared = {}
    for name, dtype, shape in told["tensors"]:
        if found is not None:
            tensor = found.tensors[name].to(device)
        else:
            tensor = torch.empty(shape, dtype=snapshot.dtype_of(dtype), device=device)
        shared[name] = group.spread(tensor)
    return shared


def _snapshots(run: Run, identity: Identity, reporter: Reporter) -> Iterator[_Candidate]:
    if run.snapshots is None:
        return
    for item in snapshot.find(run.snapshots):
        if item.record.get("job") == run.job and identity.owns(item.record):
            yield _Candidate(item.position, lambda item=item: _of_snapshot(item))  # type: ignore[misc]
        else:
            log(
                reporter,
                "info",
                f"the snapshot {item.path.name} belongs to something else and is passed over",
            )


def _of_snapshot(item: snapshot.Snapshot) -> Found:
    try:
        return Found(Progress.from_json(item.record["progress"]), item.load(), SNAPSHOT, False, [])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{item.path} cannot be read: {error!r}") from error


def _checkpoints(run: Run, identity: Identity) -> Iterator[_Candidate]:
    folder = run.folder / "checkpoints"
    for step, path in writer.own(folder) if folder.is_dir() else ():
        yield _candidate(run, identity, path, step, None)
    if run.checkpoint is not None:
        yield _candidate(run, identity, run.checkpoint.path, _UNKNOWN, run.checkpoint.digest)


def _candidate(run: Run, identity: Identity, path: Path, step: int, digest: str | None) -> _Candidate:
    try:
        record = json.loads((path / writer.STATE).read_bytes())
        position = Progress.from_json(record["progress"]).position
    except (OSError, ValueError, KeyError, TypeError):
        position = (step, _UNKNOWN)
    return _Candidate(position, lambda: _of_checkpoint(run, identity, path, digest))


def _of_checkpoint(run: Run, identity: Identity, path: Path, digest: str | None) -> Found:
    try:
        with artifact.steady((path, digest or "")):
            record: dict[str, Any] = json.loads((path / writer.STATE).read_bytes())
            drift = identity.check(record, forked=run.forked, accept_drift=run.accept_drift)
            progress = Progress.from_json(record["progress"])
            files = sorted(path.glob("*.safetensors"))
            tensors = {
                f"{file.stem}/{name}": item for file in files for name, item in load_file(file).items()
            }
    except (TrainerError, DamagedError):
        raise
    except Exception as error:  # hashes hold, so it was written by something else
        raise DamagedError(f"{path} cannot be read: {error!r}") from error
    if drift or not identity.owns(record):
        # What is unfinished belongs to a step as the other spec or environment cuts it.
        progress.drop_partial()
        tensors = {name: item for name, item in tensors.items() if not name.startswith(f"{PARTIAL}/")}
    return Found(progress, tensors, CHECKPOINT, digest is None, drift)
