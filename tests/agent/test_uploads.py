"""Checkpoints on their way to the store: what goes wrong with one keeps no other waiting."""

import asyncio
import errno
import os
from pathlib import Path

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith_agent.folder import Notes, RunFolder
from tunesmith_agent.uploads import Uploads
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore


def saved(folder: Path, step: int) -> Path:
    """A whole checkpoint, as a trainer leaves it."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(bytes([step]) * 100)
    (path / "manifest.json").write_bytes(manifest.build(path, "checkpoint", {}).canonical())
    return path


async def test_an_error_over_one_checkpoint_does_not_end_the_uploads(tmp_path: Path) -> None:
    told: list[int] = []

    async def report(checkpoint: state_pb2.CheckpointRef) -> None:
        told.append(checkpoint.step)
        if checkpoint.step == 1:  # what its answer asks for cannot be written down
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = RunFolder(tmp_path / "run")
    notes = Notes("projects/default/jobs/j", 1, "n1")
    uploads = Uploads(folder, notes, BlobStore.open(str(tmp_path / "store")), report)
    for step in (1, 2):
        saved(folder.path, step)
    for found in folder.checkpoints(after_step=0):
        uploads.add(found)
    running = asyncio.create_task(uploads.run(lambda _: False))
    await asyncio.wait_for(uploads.all_done(), 60)
    running.cancel()
    assert told == [1, 2]
    assert notes.reported_step == 2


def test_a_checkpoint_that_goes_away_while_it_is_looked_at_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    (saved(folder.path, 1) / "gone").symlink_to("nowhere")  # listed, and not there when it is asked for
    saved(folder.path, 2)
    assert [found["step"] for found in folder.checkpoints(after_step=0)] == [2]
