"""What is leaving a node: moves and drains under way, looked after until they are over.

A command may be lost with the bus, a target may go away, an attempt may have been placed while its node was
being closed: whatever a verb could not finish is taken up again here.
"""

import asyncio
import logging
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.errors import Unavailable
from tunesmith_jobs import machine, moves
from tunesmith_jobs.change import ACTOR, JobChange
from tunesmith_jobs.fleet import FleetStore
from tunesmith_jobs.stopping import live_attempt
from tunesmith_jobs.tables import JobRow, NodeRow
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database

log = logging.getLogger(__name__)
LONGEST_PREPARATION = timedelta(minutes=10)
_LOOK_SECONDS = 2.0
_REPEAT_SECONDS = 30.0  # the bus may have lost the command to fetch


class Departures:
    """Gives up moves that come to nothing, repeats commands to fetch, and empties draining nodes."""

    def __init__(self, db: Database, fleet: FleetStore, clock: Clock) -> None:
        self._db, self._fleet, self._clock = db, fleet, clock
        # Per job: its move, and when this process first saw it, by the monotonic clock: a set one ends none.
        self._seen: dict[str, tuple[str, float]] = {}

    async def run(self) -> None:
        """Looks every two seconds until it is cancelled."""
        while True:
            try:
                await self.look()
            except Unavailable as error:
                log.warning("moves and drains cannot be looked after", extra={"error": error.message})
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Looks once at every move and drain under way."""
        moving = select(col(JobRow.id)).where(col(JobRow.move_node) != "")
        found = await self._db.read(lambda session: session.execute(moving).scalars().all())
        self._seen = {job_id: seen for job_id, seen in self._seen.items() if job_id in found}
        for job_id in found:
            await self._db.write(lambda session, job_id=job_id: self._look_at(session, job_id))  # type: ignore[misc]
        for node_id in await self._fleet.draining():
            await self._fleet.clear(node_id, ACTOR)

    def _look_at(self, session: Session, job_id: str) -> None:
        row = session.get_one(JobRow, job_id, with_for_update=True)
        change = JobChange(session, row, ACTOR, self._clock.now())
        attempt = live_attempt(session, change.job)
        if change.job.state not in machine.TRAINS or not change.job.HasField("move") or attempt is None:
            return
        age = self._age(change)
        target = session.get(NodeRow, change.job.move.node)
        if target is None or target.state != nodes_pb2.NODE_STATE_READY:
            moves.give_up(change, "TARGET_GONE", "the node is no longer ready")
        elif age > LONGEST_PREPARATION.total_seconds():
            moves.give_up(change, "TARGET_SLOW", "the node did not fetch what it needs within ten minutes")
        elif age % _REPEAT_SECONDS < _LOOK_SECONDS < age:
            moves.ask(change, attempt)
            return
        else:
            return
        change.save()

    def _age(self, change: JobChange) -> float:
        """Seconds since a move began, as far as this process has seen it."""
        move, now = f"{change.job.move.node} {change.job.move.start_time}", self._clock.monotonic()
        if self._seen.get(change.row.id, ("", 0.0))[0] != move:
            self._seen[change.row.id] = (move, now)
        return now - self._seen[change.row.id][1]
