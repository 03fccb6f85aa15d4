"""What an attempt needs, brought to the node: model, data and checkpoint by digest, kept in a cache."""

import asyncio
import logging
import shutil
from pathlib import Path

from tunesmith.api.nodes.v1 import events_pb2
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore

log = logging.getLogger(__name__)


class InputCache:
    """Folders by digest. A folder is there whole or not at all; fetching one waits for nobody else's."""

    def __init__(self, root: Path, blobs: BlobStore) -> None:
        self._root, self._blobs = root, blobs
        self._locks: dict[str, asyncio.Lock] = {}

    async def gather(self, assign: events_pb2.AssignAttempt) -> dict[str, dict[str, object] | None]:
        """Fetches the inputs of an attempt; returns the entries of `run.json` for them."""
        base = await self._fetch("models", assign.base_model_digest)
        data = await self._fetch("datasets", assign.dataset_digest)
        checkpoint: dict[str, object] | None = None
        if assign.checkpoint_digest:
            path = await self._fetch("checkpoints", assign.checkpoint_digest)
            checkpoint = {
                "path": str(path),
                "digest": assign.checkpoint_digest,
                "step": assign.checkpoint_step,
            }
        return {
            "base_model": {"path": str(base), "digest": assign.base_model_digest},
            "dataset": {"path": str(data), "digest": assign.dataset_digest},
            "checkpoint": checkpoint,
        }

    async def forget(self, assign: events_pb2.AssignAttempt) -> None:
        """Drops the copies an attempt used, one of which is damaged; they are fetched anew when needed."""
        digests = {
            "models": assign.base_model_digest,
            "datasets": assign.dataset_digest,
            "checkpoints": assign.checkpoint_digest,
        }
        for kind, digest in digests.items():
            if digest:
                async with self._locks.setdefault(digest, asyncio.Lock()):
                    await asyncio.to_thread(shutil.rmtree, self._root / kind / digest, ignore_errors=True)

    async def _fetch(self, kind: str, digest: str) -> Path:
        target = self._root / kind / digest
        async with self._locks.setdefault(digest, asyncio.Lock()):
            if not target.is_dir():
                await asyncio.to_thread(self._fetch_now, digest, target)
        return target

    def _fetch_now(self, digest: str, target: Path) -> None:
        partial = target.with_name(f".{digest}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        manifest.fetch_folder(self._blobs, digest, partial)
        partial.rename(target)
