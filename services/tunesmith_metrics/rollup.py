"""The roll-up: folds nodes' series into blocks and buckets, and deletes what is older than it is kept."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.errors import Unavailable
from tunesmith_kit import subjects
from tunesmith_kit.db import Database
from tunesmith_metrics import nodeseries
from tunesmith_metrics.tables import RUNS

log = logging.getLogger(__name__)
_PAUSE_SECONDS = 60.0
_EXPIRE_SECONDS = 3600.0


class RollUp:
    """Looks every minute for nodes whose next half hour is complete.

    Args:
        keep_seconds: how long rows of each resolution (1, 60 and 3600 seconds) are kept.
    """

    def __init__(
        self, db: Database, keep_seconds: Mapping[int, float], clock: Callable[[], float] = time.time
    ) -> None:
        self._db, self._keep, self._clock = db, keep_seconds, clock
        self._folded: dict[str, int] = {}  # node -> the time before which it is folded
        self._expired = float("-inf")

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            try:
                await self.once()
            except Unavailable as error:
                log.warning("series of nodes cannot be rolled up", extra={"error": error.message})
            await asyncio.sleep(_PAUSE_SECONDS)

    async def once(self) -> int:
        """Folds what there is now, one transaction a node, and returns how many points were folded."""
        now, num_points = self._clock(), 0
        for job_id in await self._db.read(_nodes):
            if self._folded.get(job_id, 0) < nodeseries.ready(now):
                num_points += await self._db.write(partial(nodeseries.fold, job_id=job_id, now=now))
                self._folded[job_id] = nodeseries.ready(now)
        if now - self._expired > _EXPIRE_SECONDS:
            self._expired = now
            await self._db.write(partial(nodeseries.expire, keep_seconds=self._keep, now=now))
        return num_points


def _nodes(session: Session) -> list[str]:
    query = select(RUNS.c.job_id).where(RUNS.c.project == subjects.FLEET)
    return list(session.execute(query).scalars())
