"""Sends what waits in the outbox, reminds of what goes on, and clears away what is old."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from tunesmith.api.metrics.v1 import rules_pb2
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.telemetry import METRICS
from tunesmith_kit.watch import CommitSignal
from tunesmith_metrics.alerts import chat, notices, store, webhook
from tunesmith_metrics.alerts.targets import Refused

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_PAUSE_SECONDS = 0.1
_CLEAN_SECONDS = 3600.0
_THREADS = 8


class Sender:
    """The loop behind the notifications. `private`: webhooks may go to private addresses."""

    def __init__(self, db: Database, signal: CommitSignal, clock: Clock, private: bool) -> None:
        self._db, self._signal, self._clock, self._private = db, signal, clock, private
        self._cleaned = float("-inf")
        # Its own threads, one for each notification at hand: a receiver that keeps silent must not hold up
        # those of ingest.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="alerts-send")

    async def run(self) -> None:
        """Works until it is cancelled."""
        if self._db.dialect == "sqlite":  # there is no other replica
            await self._db.write(lambda session: notices.release(session, self.now_us()))
        while True:
            armed = self._signal.arm()
            if await self.once():
                continue
            await asyncio.sleep(_PAUSE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await armed.wait()

    async def once(self) -> int:
        """Tries what is due now and returns how many notifications that were."""
        now_us = self.now_us()
        if self._clock.monotonic() - self._cleaned > _CLEAN_SECONDS:
            self._cleaned = self._clock.monotonic()
            await self._db.write(lambda session: notices.clean(session, now_us))
        if await self._db.read(lambda session: notices.needs_reminder(session, now_us)):
            await self._db.write(lambda session: notices.remind(session, now_us))
        if not await self._db.read(lambda session: notices.is_due(session, now_us)):
            return 0
        rows = await self._db.write(lambda session: notices.claim(session, now_us))
        problems = await asyncio.gather(*(self._try(row) for row in rows))
        done_us = self.now_us()

        def settle(session: Any) -> None:
            for row, problem in zip(rows, problems, strict=True):
                notices.settle(session, row, problem, done_us)

        await self._db.write(settle)
        return len(rows)

    async def _try(self, row: Any) -> str:
        found = await self._db.read(lambda s: store.channel_row(s, row.project, row.channel_id))
        if found is None:
            return "the channel was deleted"
        problem = await self.send(found, row)
        METRICS.alert_notifications.labels(result="failed" if problem else "delivered").inc()
        if problem:
            log.warning("notification is tried again", extra={"notification": row.id, "problem": problem})
        return problem

    async def send(self, channel: rules_pb2.AlertChannel, row: Any) -> str:
        """Sends a notification through a channel and returns what went wrong; empty: nothing did."""
        loop = asyncio.get_running_loop()
        try:
            if channel.WhichOneof("target") == "webhook":
                now = self._clock.now()
                await loop.run_in_executor(
                    self._threads, webhook.send, channel.webhook, row, now, self._private
                )
            else:
                alert = rules_pb2.Alert.FromString(row.alert)
                await loop.run_in_executor(
                    self._threads, chat.send, channel.apprise, alert, row.state, self._private
                )
        except Refused as error:
            return str(error)
        return ""

    def close(self) -> None:
        """Lets go of the threads; tries under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def now_us(self) -> int:
        """Time of day."""
        return int(self._clock.now().timestamp() * 1_000_000)
