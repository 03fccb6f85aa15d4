"""The engine: read what was stored, judge it, and write down what was found together with how far it came.

What is found and how far everything was judged are one transaction. Between two of them the engine is ahead
in memory only: a process killed at any instant leaves a state from which the same is found again, under the
same ids. One replica judges at a time; a second one that thinks it may finds the row changed and begins anew.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import Any

import re2
from sqlalchemy import Row
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import rules_pb2
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.ids import new_ulid
from tunesmith_kit.watch import CommitSignal
from tunesmith_metrics.alerts import ledger, store
from tunesmith_metrics.alerts.judging import Bench
from tunesmith_metrics.alerts.machine import Rule, rule_of
from tunesmith_metrics.alerts.store import Cursor

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.2  # between passes: many small commits are judged together
_POLL_SECONDS = 1.0
_SAVE_SECONDS = 10.0  # without news the state is written this often
_LEASE_US = 15_000_000


class Overtaken(Exception):
    """Another replica judged, or rules changed: what is in memory is void."""


class Engine:
    """Evaluates the rules of all projects."""

    def __init__(self, db: Database, signal: CommitSignal, clock: Clock) -> None:
        self._db, self._signal, self._clock = db, signal, clock
        self._name = new_ulid()
        self._bench: Bench | None = None
        self._cursor = Cursor()
        self._saved_at = 0.0
        self._poked = asyncio.Event()

    def poke(self) -> None:
        """Says that rules changed."""
        self._poked.set()

    async def run(self) -> None:
        """Works until it is cancelled."""
        self._bench = None
        while True:
            armed = self._signal.arm()
            self._poked.clear()
            try:
                more = await self.once()
            except Overtaken:
                self._bench, more = None, True
            await self._rest(armed, more)

    async def _rest(self, armed: asyncio.Event, more: bool) -> None:
        if self._bench is None or not self._bench.rules:  # commits of ingest do not wake it then
            armed = self._poked
        if not more:
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await armed.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PAUSE_SECONDS if not more else 0.01):
                await self._poked.wait()

    async def once(self) -> bool:
        """Judges what there is now, at most a page of it; tells whether there is more.

        Raises:
            Overtaken: what is in memory is void.
        """
        if self._bench is None and not await self._begin():
            return False
        bench = self._bench
        assert bench is not None, "it was made above"
        if not bench.rules:
            changed = await self._db.read(store.cursor)
            if changed.rules_version != self._cursor.rules_version:
                raise Overtaken
            return False
        more = await self._db.read(lambda session: self._judge(session, bench))
        late = self._clock.monotonic() - self._saved_at > _SAVE_SECONDS
        if bench.news or late:
            self._cursor = await self._db.write(lambda session: self._save(session, bench))
            bench.saved()
            self._saved_at = self._clock.monotonic()
        return more

    async def _begin(self) -> bool:
        if self._is_anothers(await self._db.read(store.cursor)):
            return False
        taken = await self._db.write(self._take)
        if taken is None:
            return False
        self._cursor, rules = taken
        self._bench = bench = Bench(rules, self._clock, self._cursor)
        if rules:
            await self._db.read(bench.load)
        self._saved_at = self._clock.monotonic()
        return True

    def _take(self, session: Session) -> tuple[Cursor, list[Rule]] | None:
        """Takes the lease; None when another replica holds it."""
        now_us = self._now_us()
        found = store.cursor(session, lock=True)
        if self._is_anothers(found):
            return None
        rules = [rule for row in store.enabled_rules(session) if (rule := _rule(row)) is not None]
        # What was stored before the oldest rule concerns none.
        start = min((rule.since_revision for rule in rules), default=found.revision)
        mine = replace(
            found,
            revision=max(found.revision, start),
            version=found.version + 1,
            holder=self._name if rules else "",
            holder_until_us=now_us + _LEASE_US,
        )
        store.save_cursor(session, mine)
        return mine, rules

    def _is_anothers(self, found: Cursor) -> bool:
        """Whether another replica judges; with SQLite there is none, and who holds the lease is dead."""
        held = found.holder not in ("", self._name) and found.holder_until_us > self._now_us()
        return held and self._db.dialect != "sqlite"

    def _judge(self, session: Session, bench: Bench) -> bool:
        self._check(store.cursor(session))
        return bench.take(session)

    def _check(self, found: Cursor) -> None:
        mine = self._cursor
        if (found.version, found.rules_version) != (mine.version, mine.rules_version):
            raise Overtaken

    def _save(self, session: Session, bench: Bench) -> Cursor:
        self._check(store.cursor(session, lock=True))
        now_us = self._now_us()
        ledger.enter(session, bench.news, bench.rules, bench.names(), now_us)
        store.save_subjects(session, bench.changed())
        for name in bench.deleted:
            store.forget_subject(session, name)
        mine = replace(
            self._cursor,
            revision=max(self._cursor.revision, bench.safe_revision()),
            history_revision=bench.history_revision,
            version=self._cursor.version + 1,
            holder_until_us=now_us + _LEASE_US,
        )
        store.save_cursor(session, mine)
        return mine

    def _now_us(self) -> int:
        return int(self._clock.now().timestamp() * 1_000_000)


def _rule(row: Row[Any]) -> Rule | None:
    """A stored rule made ready; one that this version cannot evaluate is left out, loudly."""
    body = rules_pb2.AlertRule.FromString(row.body)
    try:
        return rule_of(row.uid, row.project, row.id, body, row.since_revision, row.since_us)
    except (re2.error, KeyError, AttributeError):
        log.exception("alert rule cannot be evaluated", extra={"rule": body.name})
        return None
