"""Ingest: what agents send becomes rows, is acknowledged after the commit, and agents hear how far it got.

One transaction takes everything at hand, so a busy service commits rarely and a quiet one at once. Whatever
the bus delivers twice, late or cut differently is stored once: a rank's sequence numbers say what it is.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith.errors import InvalidArgument, TunesmithError
from tunesmith_kit.bus import Bus, Consumer, Delivery
from tunesmith_kit.db import Database
from tunesmith_kit.streams import INGEST, LOGS, LOGSTORE, METRICS
from tunesmith_kit.telemetry import METRICS as METERS
from tunesmith_metrics import store
from tunesmith_metrics.events import Rank, Watermark, announce, read_batch, read_chunk
from tunesmith_metrics.keys import KeyRing
from tunesmith_metrics.retention import Retention

M = TypeVar("M", bound=Message)
log = logging.getLogger(__name__)

_BATCH = 2000
_MANY = _BATCH // 4


class Ingest:
    """The two consumers that fill the store."""

    def __init__(self, db: Database, bus: Bus, retention: Retention) -> None:
        self._db, self._bus, self._retention = db, bus, retention
        self._ring = KeyRing()
        self._consumers: list[Consumer] = []

    async def start(self) -> None:
        """Begins to consume."""
        self._consumers = [
            await self._bus.consume_batches(METRICS, INGEST, self._metrics, batch=_BATCH),
            await self._bus.consume_batches(LOGS, LOGSTORE, self._logs, batch=_BATCH),
        ]

    def is_full(self, project: str) -> bool:
        """Whether the project stores as many points as it may."""
        return self._retention.full(project)

    async def take(
        self,
        who: Rank,
        batches: Sequence[events_pb2.MetricBatch],
        chunk: events_pb2.LogChunk | None,
        check: Callable[[Session], None],
    ) -> Watermark:
        """Stores what a program sent itself, in one transaction, each part of it once, and tells how far all
        is stored. Batches come in order; `check` raises what speaks against it.

        Raises:
            InvalidArgument: the job belongs to another project.
        """

        begun = False

        def work(session: Session) -> tuple[int, int, Watermark]:
            nonlocal begun
            check(session)  # here, for a transaction of its own costs as much as all the rest
            begun, points, lines = True, 0, 0
            if batches:
                stored = self._add_batches(session, [(who, one, one.SerializeToString()) for one in batches])
                points = _all_of(stored)
            if chunk is not None:
                lines = _all_of(store.add_chunks(session, [(who, chunk, chunk.SerializeToString())]))
            return points, lines, store.watermark(session, who)

        try:
            points, lines, mark = await self._db.write(work)
        except BaseException:
            if begun:
                self._ring.forget()
            raise
        METERS.points_ingested.inc(points)
        METERS.log_lines_ingested.inc(lines)
        return mark

    def busy(self) -> bool:
        """Whether so much waits to be stored that other work on the store should wait too."""
        return any(consumer.num_pending > _MANY for consumer in self._consumers)

    async def stop(self) -> None:
        """Stores what is at hand and gives the rest back."""
        for consumer in self._consumers:
            await consumer.stop()

    async def _metrics(self, items: Sequence[Delivery]) -> Mapping[int, TunesmithError]:
        try:
            stored, refused = await self._take(METRICS, items, read_batch, self._add_batches)
        except BaseException:
            self._ring.forget()  # what it remembers may not have been stored
            raise
        METERS.points_ingested.inc(stored)
        return refused

    def _add_batches(self, session: Session, batches: Sequence[store.Batch]) -> store.Stored:
        """Stores batches, but not those of full projects: acknowledged and not stored, they stay with their
        agents, which send them again later, and nobody else waits for them."""
        places = [at for at, (who, _, _) in enumerate(batches) if not self._retention.full(who.project)]
        if len(places) == len(batches):
            return store.add_batches(session, batches, self._ring, self._limit)
        held = [batch for who, batch, _ in batches if self._retention.full(who.project)]
        METERS.points_held.inc(sum(len(matrix.values) for batch in held for matrix in batch.matrices))
        if not places:
            return store.Stored([], {}, 0)
        stored = store.add_batches(session, [batches[at] for at in places], self._ring, self._limit)
        refused = {places[at]: error for at, error in stored.refused.items()}
        return store.Stored(stored.marks, refused, stored.num_new)

    def _limit(self, project: str) -> int:
        return self._retention.effective(project).max_keys_per_job

    async def _logs(self, items: Sequence[Delivery]) -> Mapping[int, TunesmithError]:
        stored, refused = await self._take(LOGS, items, read_chunk, store.add_chunks)
        METERS.log_lines_ingested.inc(stored)
        return refused

    async def _take(
        self,
        stream: str,
        items: Sequence[Delivery],
        read: Callable[[Delivery], tuple[Rank, M]],
        add: Callable[[Session, Sequence[tuple[Rank, M, bytes]]], store.Stored],
    ) -> tuple[int, Mapping[int, TunesmithError]]:
        began = time.perf_counter()

        def work(session: Session) -> tuple[store.Stored, dict[int, TunesmithError]]:
            # Reading is done where it is stored: a hop between threads costs more than most messages.
            good, refused = _read_all(items, read)
            rows = [(who, message, items[index].payload) for index, who, message in good]
            stored = add(session, rows) if rows else store.Stored([], {}, 0)
            return stored, refused | {good[at][0]: error for at, error in stored.refused.items()}

        stored, refused = await self._db.write(work)
        await announce(self._bus, stored.marks)
        METERS.ingest_duration.labels(stream=stream).observe(time.perf_counter() - began)
        METERS.ingest_lag.labels(stream=stream).set(items[-1].num_pending)
        return stored.num_new, refused


def _all_of(stored: store.Stored) -> int:
    for error in stored.refused.values():
        raise error
    return stored.num_new


def _read_all(
    items: Sequence[Delivery], read: Callable[[Delivery], tuple[Rank, M]]
) -> tuple[list[tuple[int, Rank, M]], dict[int, TunesmithError]]:
    good: list[tuple[int, Rank, M]] = []
    refused: dict[int, TunesmithError] = {}
    for index, item in enumerate(items):
        try:
            who, message = read(item)
        except InvalidArgument as error:
            refused[index] = error
        else:
            good.append((index, who, message))
    return good, refused
