"""Brings a run's checkpoints into the blob store and reports each once it lies there whole."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.errors import FailedPrecondition, TunesmithError
from tunesmith_agent.folder import Notes, RunFolder
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore

log = logging.getLogger(__name__)
_AGAIN_SECONDS = 2.0


class Uploads:
    """Takes the trainer's `checkpoint` events in their order."""

    def __init__(
        self,
        folder: RunFolder,
        notes: Notes,
        blobs: BlobStore,
        report: Callable[[state_pb2.CheckpointRef], Awaitable[None]],
    ) -> None:
        self._folder, self._notes, self._blobs, self._report = folder, notes, blobs, report
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def add(self, event: dict[str, Any]) -> None:
        """Takes a checkpoint event."""
        self._waiting.put_nowait(event)

    async def all_done(self) -> None:
        """Waits until every checkpoint taken so far is stored and reported."""
        await self._waiting.join()

    async def run(self, fenced: Callable[[BaseException], bool]) -> None:
        """Uploads until it is cancelled. `fenced` is told of an error and says whether it is dealt with."""
        while True:
            event = await self._waiting.get()
            try:
                await self._upload(event)
            except Exception as error:
                if not fenced(error):  # a full disk, say: the next ones, and the attempt's end, wait for us
                    log.exception("a checkpoint is not reported", extra={"path": event["path"]})
            finally:
                self._waiting.task_done()

    async def _upload(self, event: dict[str, Any]) -> None:
        path = self._folder.path / event["path"]
        while True:
            if not (path / "manifest.json").exists():
                log.info("a checkpoint was replaced before it was uploaded", extra={"path": event["path"]})
                return
            try:
                digest = await asyncio.to_thread(manifest.put_folder, self._blobs, path)
                break
            except FailedPrecondition as error:
                # Damage does not heal: waiting would hold the attempt for ever. A resume takes an older one.
                log.warning(
                    "a damaged checkpoint is not stored", extra={"path": event["path"], "why": error.message}
                )
                return
            except (TunesmithError, OSError) as error:
                log.warning(
                    "a checkpoint cannot be stored now", extra={"path": event["path"], "error": str(error)}
                )
                if self._notes.told_to_kill:
                    return  # who wants the end at once does not wait for the store
                await asyncio.sleep(_AGAIN_SECONDS)
        checkpoint = state_pb2.CheckpointRef(
            step=event["step"],
            epoch=self._notes.epoch,
            digest=digest,
            size_bytes=event["size_bytes"],
            eval_loss=_property(path, "eval_loss"),
            judged=_property(path, "judged"),
        )
        checkpoint.create_time.FromMilliseconds(int(event["time"] * 1000))
        await self._report(checkpoint)
        self._notes.reported_digest = digest
        self._notes.reported_step = max(self._notes.reported_step, event["step"])


def _property(path: Path, name: str) -> float | None:
    """Returns a figure of the evaluation the checkpoint was made after, if there was one."""
    try:
        properties = json.loads((path / "manifest.json").read_bytes())["properties"]
        return float(properties[name]) if name in properties else None
    except (OSError, ValueError, KeyError):
        return None  # removed by the retention rules while it was stored
