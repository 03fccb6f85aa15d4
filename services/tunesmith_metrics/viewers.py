"""Who watches which job, so that its agents, or its own program, send at shorter intervals meanwhile."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus, Message

_REPEAT_SECONDS = 5.0
_LASTS_SECONDS = 2 * _REPEAT_SECONDS  # an agent goes on for as long


class Viewers:
    """The jobs that are watched through this process, and those it hears are watched through others."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._jobs: Counter[tuple[str, str]] = Counter()
        self._elsewhere: dict[str, float] = {}  # when it was last said of a job's id

    async def start(self) -> None:
        """Begins to hear of viewers at other replicas."""
        await self._bus.subscribe(subjects.any_viewed(), self._hear)

    def watched(self, project: str, job_id: str) -> bool:
        """Whether somebody watches a job, or did some seconds ago."""
        said = self._elsewhere.get(job_id, float("-inf"))
        return (project, job_id) in self._jobs or time.monotonic() - said < _LASTS_SECONDS

    async def _hear(self, message: Message) -> None:
        now = time.monotonic()
        viewed = events_pb2.JobViewed.FromString(message.payload).job_id
        old = (job_id for job_id, said in self._elsewhere.items() if now - said > _LASTS_SECONDS)
        for job_id in list(old):
            del self._elsewhere[job_id]
        self._elsewhere[viewed] = now

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
