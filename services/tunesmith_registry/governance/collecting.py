"""Runs garbage collections: now and then in the background, or when somebody asks; never two at a time."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta

from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.holds import Holds
from tunesmith_registry.change import Caller
from tunesmith_registry.governance import garbage
from tunesmith_registry.governance.garbage import Sweep

log = logging.getLogger(__name__)
_ACTOR = "service/registry"
_REPORT_EVERY = 2000


class Collector:
    """Sweeps of the blob store and of what the retention policies let go."""

    def __init__(
        self,
        db: Database,
        blobs: BlobStore,
        holds: Holds,
        clock: Clock,
        grace: timedelta,
        interval: timedelta,
    ) -> None:
        self._db, self._blobs, self._holds, self._clock = db, blobs, holds, clock
        self._grace, self._interval = grace, interval
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Collects once an interval, the first time after one; for ever."""
        while True:
            await asyncio.sleep(self._interval.total_seconds())
            caller = Caller(_ACTOR, self._clock.now())
            async for sweep, done in self.collect(caller, dry_run=False):
                if done:
                    facts = {"num_deleted": sweep.num_deleted, "bytes_deleted": sweep.bytes_deleted}
                    log.info("garbage collected", extra=facts)

    async def collect(self, caller: Caller, *, dry_run: bool) -> AsyncIterator[tuple[Sweep, bool]]:
        """Yields how far a sweep is, and at last its result with True."""
        async with self._lock:
            sweep, now = Sweep(), self._clock.now()
            await self._let_go(caller, sweep, dry_run)
            # Before the store is read: what is entered later mentions young content only.
            roots = await self._db.read(garbage.mentioned)
            keep = await asyncio.to_thread(garbage.referenced, self._blobs, roots)
            keep |= await asyncio.to_thread(self._holds.held)
            found = garbage.unreferenced(self._blobs, keep, now, self._grace, sweep)
            while batch := await asyncio.to_thread(_some, found):
                gone = batch
                if not dry_run:
                    still = await self._still(batch)
                    gone = await asyncio.to_thread(self._remove, still, now - self._grace)
                sweep.num_deleted += len(gone)
                sweep.bytes_deleted += sum(size for _, size in gone)
                yield sweep, False
            yield sweep, True

    async def _let_go(self, caller: Caller, sweep: Sweep, dry_run: bool) -> None:
        for project in await self._db.read(garbage.projects):
            versions = await self._db.read(lambda s, p=project: garbage.expired(s, p, caller.now))  # type: ignore[misc]
            names = [version.name for version in versions]
            if names and not dry_run:
                names = await self._db.write(
                    lambda s, p=project, n=names: garbage.let_go(s, caller, p, n)  # type: ignore[misc]
                )
            sweep.expired_versions += names

    async def _still(self, batch: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Looks once more, right before deleting, whether a row mentions any of a batch by now."""
        roots = await self._db.read(garbage.mentioned)
        return [(digest, size) for digest, size in batch if digest not in roots]

    def _remove(self, batch: list[tuple[str, int]], before: datetime) -> list[tuple[str, int]]:
        return [pair for pair in batch if self._blobs.remove(pair[0], before)]


def _some(found: Iterator[tuple[str, int]]) -> list[tuple[str, int]]:
    batch = []
    for pair in found:
        batch.append(pair)
        if len(batch) == _REPORT_EVERY:
            break
    return batch
