"""A database in memory with the face of the kit's: same SQL, no thread, faults on order."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import MetaData, create_engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from tunesmith.errors import Unavailable

T = TypeVar("T")


class SimDatabase:
    """SQLite in memory. `trouble`: the share of writes that fail, half of them after the commit."""

    dialect = "sqlite"

    def __init__(self, metadata: MetaData, rng: random.Random) -> None:
        self._rng = rng
        self._listeners: list[Callable[[], None]] = []
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
        return self.look(work)

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
