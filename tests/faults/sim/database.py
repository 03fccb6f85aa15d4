"""A database in memory with the face of the kit's: same SQL, no thread, faults on order."""

import asyncio
import random
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

from sqlalchemy import MetaData, create_engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from tunesmith.errors import Unavailable

T = TypeVar("T")


# Reads that services repeat as time passes, and whose answer depends on the rows alone: while nothing was
# committed it is known. Nine reads of ten were such, and they were most of what a story cost.
_POLLS = (
    "FleetStore.reachable.<locals>.read",
    "FleetStore.draining.<locals>.<lambda>",
    "Departures.look.<locals>.<lambda>",
    "OutboxRelay._send_batch.<locals>.<lambda>",
    "Scheduler._redeliver.<locals>.<lambda>",
)


class SimDatabase:
    """SQLite in memory. `trouble`: the share of writes that fail, half of them after the commit."""

    dialect = "sqlite"

    def __init__(self, metadata: MetaData, rng: random.Random) -> None:
        self._rng = rng
        self._listeners: list[Callable[[], None]] = []
        self._polled: dict[object, Any] = {}  # since the last commit
        self.trouble = 0.0
        self.engine = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        event.listen(self.engine, "connect", _own_transactions)
        event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        metadata.create_all(self.engine)

    async def write(self, work: Callable[[Session], T]) -> T:
        """Runs `work` in a transaction. In trouble, nobody knows whether a failed one was committed."""
        await asyncio.sleep(self._rng.uniform(0, 0.004))
        fails = self._rng.random() < self.trouble
        if fails and self._rng.random() < 0.5:
            raise _gone()
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            result = work(session)
        self._polled.clear()
        for listener in list(self._listeners):
            listener()
        if fails:
            raise _gone()
        return result

    async def read(self, work: Callable[[Session], T]) -> T:
        """Runs `work` in a read transaction."""
        await asyncio.sleep(self._rng.uniform(0, 0.002))
        if self._rng.random() < self.trouble / 4:
            raise _gone()
        return self._poll(work)

    def _poll(self, work: Callable[[Session], T]) -> T:
        name = work.__qualname__
        key = (name, id(work.__self__)) if isinstance(work, MethodType) else name
        if name != "Census.refresh" and name not in _POLLS:
            return self.look(work)
        if key not in self._polled:
            found = self.look(work)
            # A census that has taken everything over finds nothing new.
            self._polled[key] = False if name == "Census.refresh" else found
            return found
        known: T = self._polled[key]
        return known

    def look(self, work: Callable[[Session], T]) -> T:
        """Reads for the simulation itself: no delay, no fault."""
        with Session(self.engine, expire_on_commit=False) as session:
            return work(session)

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after each commit."""
        self._listeners.append(listener)

    def forget_listeners(self) -> None:
        """Those who listened have died."""
        self._listeners.clear()

    def close(self) -> None:
        """Frees the memory."""
        self.engine.dispose()


def _own_transactions(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves


def _gone() -> Unavailable:
    return Unavailable("DATABASE_UNAVAILABLE", "the database cannot be used: simulated")
