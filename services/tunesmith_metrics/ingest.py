"""Ingest: what agents send becomes rows, is acknowledged after the commit, and agents hear how far it got.

One transaction takes everything at hand, so a busy service commits rarely and a quiet one at once. Whatever
the bus delivers twice, late or cut differently is stored once: a rank's sequence numbers say what it is.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message
from sqlalchemy.orm import Session

from tunesmith.errors import InvalidArgument
from tunesmith_kit.bus import Bus, Consumer, Delivery
from tunesmith_kit.db import Database
from tunesmith_kit.streams import INGEST, LOGS, LOGSTORE, METRICS
from tunesmith_kit.telemetry import METRICS as METERS
from tunesmith_metrics import store
from tunesmith_metrics.events import Rank, announce, read_batch, read_chunk

M = TypeVar("M", bound=Message)
log = logging.getLogger(__name__)

_BATCH = 1000


class Ingest:
    """The two consumers that fill the store."""

    def __init__(self, db: Database, bus: Bus) -> None:
        self._db, self._bus = db, bus
        self._consumers: list[Consumer] = []

    async def start(self) -> None:
        """Begins to consume."""
        self._consumers = [
            await self._bus.consume_batches(METRICS, INGEST, self._metrics, batch=_BATCH),
            await self._bus.consume_batches(LOGS, LOGSTORE, self._logs, batch=_BATCH),
        ]

    async def stop(self) -> None:
        """Stores what is at hand and gives the rest back."""
        for consumer in self._consumers:
            await consumer.stop()

    async def _metrics(self, items: Sequence[Delivery]) -> Mapping[int, InvalidArgument]:
        stored, refused = await self._take(METRICS, items, read_batch, store.add_batches)
        METERS.points_ingested.inc(stored)
        return refused

    async def _logs(self, items: Sequence[Delivery]) -> Mapping[int, InvalidArgument]:
        stored, refused = await self._take(LOGS, items, read_chunk, store.add_chunks)
        METERS.log_lines_ingested.inc(stored)
        return refused

    async def _take(
        self,
        stream: str,
        items: Sequence[Delivery],
        read: Callable[[Delivery], tuple[Rank, M]],
        add: Callable[[Session, Sequence[tuple[Rank, M, bytes]]], store.Stored],
    ) -> tuple[int, Mapping[int, InvalidArgument]]:
        began = time.perf_counter()
        good, refused = await asyncio.to_thread(_read_all, items, read)
        if good:
            rows = [(who, message, items[index].payload) for index, who, message in good]
            stored = await self._db.write(lambda session: add(session, rows))
            refused |= {good[at][0]: error for at, error in stored.refused.items()}
            await announce(self._bus, stored.marks)
        METERS.ingest_duration.labels(stream=stream).observe(time.perf_counter() - began)
        METERS.ingest_lag.labels(stream=stream).set(items[-1].num_pending)
        return stored.num_new if good else 0, refused


def _read_all(
    items: Sequence[Delivery], read: Callable[[Delivery], tuple[Rank, M]]
) -> tuple[list[tuple[int, Rank, M]], dict[int, InvalidArgument]]:
    good: list[tuple[int, Rank, M]] = []
    refused: dict[int, InvalidArgument] = {}
    for index, item in enumerate(items):
        try:
            who, message = read(item)
        except InvalidArgument as error:
            refused[index] = error
        else:
            good.append((index, who, message))
    return good, refused
