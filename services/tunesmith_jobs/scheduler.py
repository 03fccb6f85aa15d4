"""The scheduler: keep a census of what waits and what is free, decide with a pure function, apply guarded.

Any number of replicas may run it. The rules are in `placement.py`, the guards in `reservation.py`.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith_jobs.assignment import assign
from tunesmith_jobs.census import Census
from tunesmith_jobs.change import ACTOR, JobChange
from tunesmith_jobs.placement import Decision, decide
from tunesmith_jobs.reservation import Placed, Reservations
from tunesmith_jobs.tables import AttemptRow, JobRow
from tunesmith_kit.clock import Clock, utc
from tunesmith_kit.db import Database
from tunesmith_kit.telemetry import METRICS, Telemetry
from tunesmith_kit.watch import CommitSignal

log = logging.getLogger(__name__)
T = TypeVar("T")
_REDELIVER_SECONDS = 5.0
_POLL_SECONDS = 1.0  # finds the commits of other replicas, and deadlines
_RETHINK_SECONDS = 5.0  # waiting changes decisions too, without any commit
_BATCH = 16  # placements or notes in a transaction: other writers wait some 20 ms for it
_NOTES_SECONDS = 0.5
_NOTES = 128  # notes a pass: they are for people, and can wait for the next one

_MEETING = (state_pb2.ATTEMPT_STATE_LAUNCHING, state_pb2.ATTEMPT_STATE_READY)


class Scheduler:
    """Runs passes whenever something was committed, and at least each second."""

    def __init__(self, db: Database, clock: Clock, telemetry: Telemetry | None = None) -> None:
        self._db, self._clock, self._telemetry = db, clock, telemetry
        self._signal = CommitSignal(db)
        self._census, self._reservations = Census(clock), Reservations(clock)
        self._decide_at = self._redelivered_at = float("-inf")

    async def run(self) -> None:
        """Schedules until it is cancelled."""
        while True:
            armed, began = self._signal.arm(), self._clock.monotonic()
            await self._turn()
            # A long queue makes long passes: they take half of the time at most.
            await asyncio.sleep(min(self._clock.monotonic() - began, _POLL_SECONDS))
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await armed.wait()
            except TimeoutError:
                continue

    async def _turn(self) -> None:
        changed = await self._db.read(self._census.refresh)
        await self._expire()
        if changed or self._clock.monotonic() >= self._decide_at:
            await self._pass()
        if self._clock.monotonic() - self._redelivered_at >= _POLL_SECONDS:
            self._redelivered_at = self._clock.monotonic()
            await self._redeliver()

    async def run_once(self) -> int:
        """Makes one pass; returns the number of jobs placed."""
        await self._db.read(self._census.refresh)
        await self._expire()
        return await self._pass()

    async def _pass(self) -> int:
        census = self._census
        METRICS.queue_length.set(len(census.waiting))
        self._decide_at = self._clock.monotonic() + _RETHINK_SECONDS
        if not census.waiting:
            return 0
        now = self._clock.now().timestamp()
        decision = await asyncio.to_thread(
            decide,
            census.waiting.values(),
            census.nodes.values(),
            census.running.values(),
            census.quotas,
            now,
        )
        return await self._apply(decision)

    async def _apply(self, decision: Decision) -> int:
        reservations, num_placed = self._reservations, 0
        for batch in _batches(decision.placements):
            placed = await self._db.write(lambda session, b=batch: reservations.place(session, b))  # type: ignore[misc]
            self._trace(placed)
            num_placed += len(placed)
        for preemption in decision.preemptions:
            await self._db.write(lambda session, p=preemption: reservations.preempt(session, p))  # type: ignore[misc]
        news = [b for b in decision.blocked if (b.reason, b.message) != b.job.noted]
        for told in _batches(news[:_NOTES]):
            await self._db.write(lambda session, b=told: reservations.note(session, b))  # type: ignore[misc]
        if num_placed < len(decision.placements):
            self._decide_at = float("-inf")  # somebody was faster: look again
        elif len(news) > _NOTES:
            self._decide_at = self._clock.monotonic() + _NOTES_SECONDS
        return num_placed

    def _trace(self, placed: Sequence[Placed]) -> None:
        """Enters how long each job had waited into its trace."""
        for each in placed if self._telemetry is not None else ():
            attributes: dict[str, int | str] = {"attempt": each.epoch, "node": each.node}
            assert self._telemetry is not None
            self._telemetry.record_span(
                "queued", each.since, each.until,
                parent=each.traceparent, job=each.job, attributes=attributes,
            )  # fmt: skip

    async def _expire(self) -> None:
        for due in list(self._census.deadlines.due()):
            await self._db.write(lambda session, d=due: self._reservations.expire(session, d))  # type: ignore[misc]

    async def _redeliver(self) -> None:
        """Sends commands again that no agent has answered: the bus may have lost them."""
        query = select(AttemptRow).where(
            col(AttemptRow.state).in_((state_pb2.ATTEMPT_STATE_RESERVED, *_MEETING))
        )
        rows = await self._db.read(lambda session: session.execute(query).scalars().all())
        now = self._clock.now()
        late = [(row.job_id, row.epoch) for row in rows if _unheard(row, now)]
        for batch in _batches(late):
            await self._db.write(lambda session, b=batch: self._command_again(session, b))  # type: ignore[misc]

    def _command_again(self, session: Session, attempts: Sequence[tuple[str, int]]) -> None:
        now = self._clock.now()
        for key in attempts:
            row = session.get(JobRow, key[0], with_for_update=True)
            attempt = session.get(AttemptRow, key)
            if row is None or attempt is None or not _unheard(attempt, now):
                continue  # another replica was faster
            attempt.command_time = now
            change = JobChange(session, row, ACTOR, now)
            assign(change, attempt)
            session.add(attempt)


def _unheard(attempt: AttemptRow, now: datetime) -> bool:
    """Whether a node of the attempt may not have heard of it. Of several nodes only the first reports that it
    has; an agent that hears a command again does nothing."""
    waits = attempt.state == state_pb2.ATTEMPT_STATE_RESERVED
    if not waits and not (attempt.state in _MEETING and len(attempt.places) > 1):
        return False
    # A time in the future was written before the clock was set back.
    return not 0 <= (now - utc(attempt.command_time)).total_seconds() < _REDELIVER_SECONDS


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), _BATCH):
        yield items[first : first + _BATCH]
