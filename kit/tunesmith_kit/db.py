"""The database of a service: one writer that gathers waiting changes into one commit, and many readers.

A single commit with a real fsync runs some 250 times a second; gathering lifts that to over 10,000 changes a
second, and since each change waits for the commit, an answer given is an answer kept. SQLite (WAL,
synchronous=FULL) and PostgreSQL share this code.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    event,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningInsert

from tunesmith.errors import Unavailable

T = TypeVar("T")
log = logging.getLogger(__name__)
_GATHER = 256  # changes in one commit; more only adds latency
_NUM_READERS = 4
_CONFLICTS = 5  # times a batch is done again because a replica was in its way


def revision_table(metadata: MetaData) -> Table:
    """Returns the one-row table that counts the revisions of a store."""
    return Table(
        "revision",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("value", BigInteger, nullable=False),
    )


def next_revision(session: Session, table: Table) -> int:
    """Returns the next revision. The row stays locked until the commit, so revisions commit in their order,
    whatever number of replicas write (a plain sequence would let a watcher skip one)."""
    return int(session.execute(_counting(table, session.get_bind().dialect.name)).scalar_one())


@cache
def _counting(table: Table, dialect_name: str) -> ReturningInsert[Any]:
    """The statement is kept: building it takes longer than running it."""
    dialect = postgresql if dialect_name == "postgresql" else sqlite
    # One statement makes the row or counts it up: two replicas may make the store's first change at once.
    first = dialect.insert(table).values(id=1, value=1)
    step = first.on_conflict_do_update(index_elements=["id"], set_={"value": table.c.value + 1})
    statement: ReturningInsert[Any] = step.returning(table.c.value)
    return statement


def current_revision(session: Session, table: Table) -> int:
    """Returns the newest revision the session sees."""
    return int(session.execute(select(table.c.value).where(table.c.id == 1)).scalar_one_or_none() or 0)


@dataclass
class _Change:
    work: Callable[[Session], Any]
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop
    result: Any = None
    error: BaseException | None = None

    def settle(self, commit_error: BaseException | None) -> None:
        error = self.error or commit_error
        self.loop.call_soon_threadsafe(self._resolve, error)

    def _resolve(self, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(error)


class Database:
    """Sessions of one service. `write` and `read` take a function of a session and run it in a thread."""

    def __init__(self, url: str, schema: str) -> None:
        self._writer_engine = _engine(url, schema, writer=True)
        self._reader_engine = _engine(url, schema, writer=False)
        self._readers = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix=f"{schema}-read")
        self._changes: queue.SimpleQueue[_Change | None] = queue.SimpleQueue()
        self._listeners: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        if self.dialect == "sqlite":
            # The change to WAL waits for nobody: it is made here, before reader and writer come together.
            self._writer_engine.connect().close()
        self._thread = threading.Thread(target=self._write_loop, name=f"{schema}-write", daemon=True)
        self._thread.start()

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._writer_engine.dialect.name

    async def write(self, work: Callable[[Session], T]) -> T:
        """Runs `work` in a transaction and returns its result after the commit.

        What `work` raises undoes its own changes only. `work` may run in one transaction with others'.

        Raises:
            Unavailable: the database cannot be reached; nothing was changed, or the outcome is not known.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._changes.put(_Change(work, future, loop))
        return await future

    async def read(self, work: Callable[[Session], T]) -> T:
        """Runs `work` in a read transaction and returns its result."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Calls `listener` on the event loop after each commit of this process."""
        self._listeners.append(listener)

    async def close(self) -> None:
        """Finishes waiting changes and closes all connections."""
        self._changes.put(None)
        await asyncio.to_thread(self._thread.join)
        self._readers.shutdown()
        self._writer_engine.dispose()
        self._reader_engine.dispose()

    def _read(self, work: Callable[[Session], T]) -> T:
        try:
            with Session(self._reader_engine, expire_on_commit=False) as session:
                return work(session)
        except DBAPIError as error:
            raise _unavailable(error) from error

    def _write_loop(self) -> None:
        ending = False
        while not ending:
            first = self._changes.get()
            if first is None:
                return
            batch = [first]
            while len(batch) < _GATHER and not self._changes.empty():
                change = self._changes.get()
                if change is None:
                    ending = True
                    break
                batch.append(change)
            self._commit(batch)

    def _commit(self, batch: list[_Change]) -> None:
        failure = self._attempt(batch)
        for _ in range(_CONFLICTS):
            if not isinstance(failure, DBAPIError) or not _is_conflict(failure):
                break
            failure = self._attempt(batch)
        if isinstance(failure, DBAPIError):
            log.warning("commit failed", extra={"error": str(failure.orig), "changes": len(batch)})
            failure = _unavailable(failure)
        for change in batch:
            change.settle(failure)
        if failure is None:
            self._loop.call_soon_threadsafe(self._announce)

    def _attempt(self, batch: list[_Change]) -> BaseException | None:
        for change in batch:
            change.result = change.error = None
        try:
            with Session(self._writer_engine, expire_on_commit=False) as session, session.begin():
                for change in batch:
                    self._apply(session, change)
        except Exception as error:
            return error
        return None

    def _apply(self, session: Session, change: _Change) -> None:
        try:
            with session.begin_nested():
                change.result = change.work(session)
            # What this change read without a lock may be old when the next one locks it.
            session.expunge_all()
        except DBAPIError as error:
            if error.connection_invalidated or isinstance(error, OperationalError):
                raise
            change.error = error
        except Exception as error:
            change.error = error

    def _announce(self) -> None:
        for listener in self._listeners:
            listener()


def _is_conflict(error: DBAPIError) -> bool:
    """Whether the server has undone the transaction for another's sake: two replicas whose batches lock the
    same rows in another order. Nothing was changed, and nothing is wrong: it is done again."""
    return getattr(error.orig, "sqlstate", "") in ("40P01", "40001")


def _unavailable(error: DBAPIError) -> BaseException:
    if not (error.connection_invalidated or isinstance(error, OperationalError)):
        return error
    cause = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
    todo = "free some space on its disk" if "disk is full" in cause else "check that it runs"
    return Unavailable(
        "DATABASE_UNAVAILABLE",
        f"the database cannot be used: {cause}",
        remedy=f"{todo}, then try again",
    )


def normalise(url: str) -> str:
    """Returns the URL with the driver we ship: `postgresql://…` means psycopg 3."""
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            return "postgresql+psycopg://" + url.removeprefix(plain)
    return url


def _engine(url: str, schema: str, writer: bool) -> Engine:
    url = normalise(url)
    if url.startswith("sqlite"):
        engine = create_engine(url, connect_args={"check_same_thread": False, "timeout": 30})
        event.listen(engine, "connect", _set_pragmas)
        # sqlite3's own transaction handling would commit before savepoints: we say BEGIN ourselves.
        begin = "BEGIN IMMEDIATE" if writer else "BEGIN"
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine
    return create_engine(
        url,
        pool_size=1 if writer else _NUM_READERS,
        pool_pre_ping=True,
        # Of one read all statements see the same, as with SQLite.
        isolation_level="READ COMMITTED" if writer else "REPEATABLE READ",
        connect_args={"options": f"-c search_path={schema}", "connect_timeout": 5},
    )


def _set_pragmas(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    # Room of deleted rows can be given back; it counts from the first table on.
    for pragma in (
        "auto_vacuum=INCREMENTAL",
        "busy_timeout=30000",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def shown(url: str) -> str:
    """Returns the URL without its password, for messages."""
    return make_url(normalise(url)).render_as_string(hide_password=True)
