"""Who watches which job, so that its agents send at shorter intervals meanwhile."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus

_REPEAT_SECONDS = 5.0  # an agent goes on for twice as long


class Viewers:
    """The jobs that are watched through this process."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._jobs: Counter[tuple[str, str]] = Counter()

    @asynccontextmanager
    async def watching(self, project: str, job_id: str) -> AsyncIterator[None]:
        """Counts a viewer and tells the job's agents at once."""
        self._jobs[project, job_id] += 1
        try:
            await self._tell(project, job_id)
            yield
        finally:
            self._jobs[project, job_id] -= 1
            if not self._jobs[project, job_id]:
                del self._jobs[project, job_id]

    async def run(self) -> None:
        """Tells it again and again until it is cancelled: agents forget."""
        while True:
            await asyncio.sleep(_REPEAT_SECONDS)
            for project, job_id in list(self._jobs):
                await self._tell(project, job_id)

    async def _tell(self, project: str, job_id: str) -> None:
        if self._bus.connected:
            message = events_pb2.JobViewed(job_id=job_id).SerializeToString()
            await self._bus.publish_core(subjects.viewed(project, job_id), message)
