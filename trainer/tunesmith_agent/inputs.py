"""What an attempt needs, brought to the node: model, data and checkpoint by digest, kept in a cache."""

import asyncio
import logging
import shutil
from pathlib import Path

from tunesmith.api.jobs.v1 import evaluation_pb2
from tunesmith.api.nodes.v1 import events_pb2
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore

log = logging.getLogger(__name__)


class InputCache:
    """Folders by digest. A folder is there whole or not at all; fetching one waits for nobody else's."""

    def __init__(self, root: Path, blobs: BlobStore) -> None:
        self._root, self._blobs = root, blobs
        self._locks: dict[str, asyncio.Lock] = {}

    async def gather(self, assign: events_pb2.AssignAttempt) -> dict[str, object]:
        """Fetches the inputs of an attempt; returns the entries of `run.json` for them."""
        base = await self.fetch("models", assign.base_model_digest)
        data: dict[str, object] | None = None
        if assign.dataset_digest:  # an export needs none
            path = await self.fetch("datasets", assign.dataset_digest)
            data = {"path": str(path), "digest": assign.dataset_digest}
        checkpoint: dict[str, object] | None = None
        if assign.checkpoint_digest:
            path = await self.fetch("checkpoints", assign.checkpoint_digest)
            checkpoint = {
                "path": str(path),
                "digest": assign.checkpoint_digest,
                "step": assign.checkpoint_step,
            }
        template: dict[str, object] | None = None
        if assign.prompt_template_digest:
            path = await self.fetch("prompts", assign.prompt_template_digest)
            template = {"path": str(path), "digest": assign.prompt_template_digest}
        return {
            "base_model": {"path": str(base), "digest": assign.base_model_digest},
            "dataset": data,
            "checkpoint": checkpoint,
            **({"prompt_template": template} if template else {}),
            "targets": [await self._target(target) for target in assign.targets],
        }

    async def _target(self, target: evaluation_pb2.PinnedTarget) -> dict[str, object]:
        if not target.digest:  # the base model itself
            return {"name": target.name}
        path = await self.fetch(_kind(target), target.digest)
        return {"name": target.name, "digest": target.digest, "path": str(path)}

    async def forget(self, assign: events_pb2.AssignAttempt) -> None:
        """Drops the copies an attempt used, one of which is damaged; they are fetched anew when needed."""
        digests = {
            "models": assign.base_model_digest,
            "datasets": assign.dataset_digest,
            "checkpoints": assign.checkpoint_digest,
            "prompts": assign.prompt_template_digest,
        }
        for kind, digest in digests.items():
            if digest:
                await self.drop(kind, digest)
        for target in assign.targets:
            if target.digest:
                await self.drop(_kind(target), target.digest)

    async def drop(self, kind: str, digest: str) -> None:
        """Drops one copy, which is damaged."""
        async with self._locks.setdefault(digest, asyncio.Lock()):
            await asyncio.to_thread(shutil.rmtree, self._root / kind / digest, ignore_errors=True)

    async def fetch(self, kind: str, digest: str) -> Path:
        """The folder of a digest, fetched if it is not there; `kind` is `models`, `datasets`, ….

        Raises `NotFound` or `FailedPrecondition` when what is stored is incomplete or damaged.
        """
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


def _kind(target: evaluation_pb2.PinnedTarget) -> str:
    return "checkpoints" if "/checkpoints/" in target.name else "models"
