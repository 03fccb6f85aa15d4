"""One writer for all changes: what was answered is kept, what failed undoes itself alone; migrations fit."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert, select, text
from sqlalchemy.orm import Session

from tunesmith_kit import db, migrate
from tunesmith_kit.db import Database, current_revision, next_revision, revision_table

METADATA = MetaData()
NUMBERS = Table("numbers", METADATA, Column("number", Integer, primary_key=True))
REVISION = revision_table(METADATA)
SCHEMA = "kit_tests"


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    engine = create_engine(db.normalise(url))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
            connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
            connection.execute(text(f"SET LOCAL search_path TO {SCHEMA}"))
        METADATA.create_all(connection)
    engine.dispose()
    found = Database(url, SCHEMA)
    yield found
    await found.close()


async def stored(database: Database) -> list[int]:
    query = select(NUMBERS.c.number).order_by(NUMBERS.c.number)
    return await database.read(lambda session: list(session.execute(query).scalars()))


async def test_replicas_in_each_others_way_both_get_their_change(url: str, database: Database) -> None:
    other = Database(url, SCHEMA)
    crossed = threading.Barrier(2)
    await database.write(lambda s: s.execute(insert(NUMBERS), [{"number": 1}, {"number": 2}]))

    def take(first: int, second: int, new: int, met: list[bool]) -> Callable[[Session], None]:
        def work(session: Session) -> None:
            session.execute(select(NUMBERS).where(NUMBERS.c.number == first).with_for_update())
            if database.dialect == "postgresql" and not met:
                met.append(True)
                crossed.wait(90)  # each holds what the other wants next
            session.execute(select(NUMBERS).where(NUMBERS.c.number == second).with_for_update())
            session.execute(insert(NUMBERS).values(number=new))

        return work

    await asyncio.gather(database.write(take(1, 2, 3, [])), other.write(take(2, 1, 4, [])))
    assert await stored(database) == [1, 2, 3, 4]
    await other.close()


async def test_waiting_changes_share_commits_and_each_gets_its_own_result(database: Database) -> None:
    commits = []
    database.on_commit(lambda: commits.append(1))

    def add(session: Session, number: int) -> int:
        session.execute(insert(NUMBERS).values(number=number))
        return 2 * number

    results = await asyncio.gather(*(database.write(lambda s, n=n: add(s, n)) for n in range(300)))  # type: ignore[misc]
    assert results == [2 * n for n in range(300)]
    assert await stored(database) == list(range(300))
    assert 1 <= len(commits) < 100, "a commit each would be a disk sync each"


async def test_a_change_that_fails_undoes_itself_alone(database: Database) -> None:
    def add(session: Session, number: int, fail: bool) -> None:
        session.execute(insert(NUMBERS).values(number=number))
        if fail:
            raise KeyError(number)

    answers = await asyncio.gather(
        *(database.write(lambda s, n=n: add(s, n, n % 3 == 0)) for n in range(30)),  # type: ignore[misc]
        return_exceptions=True,
    )
    assert [isinstance(answer, KeyError) for answer in answers] == [n % 3 == 0 for n in range(30)]
    assert await stored(database) == [n for n in range(30) if n % 3]


async def test_a_broken_constraint_is_the_callers_error_and_the_writer_goes_on(database: Database) -> None:
    from sqlalchemy.exc import IntegrityError

    def add(session: Session) -> None:
        session.execute(insert(NUMBERS).values(number=7))

    await database.write(add)
    with pytest.raises(IntegrityError):
        await database.write(add)
    await database.write(lambda s: s.execute(insert(NUMBERS).values(number=8)))
    assert await stored(database) == [7, 8]


async def test_revisions_of_two_writers_have_no_gap_and_a_reader_sees_no_later_one_first(
    database: Database, url: str
) -> None:
    other = Database(url, SCHEMA)
    highest = 0

    def step(session: Session) -> int:
        revision = next_revision(session, REVISION)
        session.execute(insert(NUMBERS).values(number=revision))
        return revision

    def look(session: Session) -> tuple[int, list[int]]:
        # The revision first: what is committed meanwhile is newer and may be seen as well.
        revision = current_revision(session, REVISION)
        return revision, list(session.execute(select(NUMBERS.c.number)).scalars())

    writers = [asyncio.ensure_future(each.write(step)) for _ in range(40) for each in (database, other)]
    while not all(writer.done() for writer in writers):
        revision, numbers = await database.read(look)
        assert revision >= highest
        assert set(range(1, revision + 1)) <= set(numbers), "a revision was seen before an earlier one"
        highest = revision
    await other.close()
    assert sorted(writer.result() for writer in writers) == list(range(1, 81))


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kit.db"
    METADATA.create_all(create_engine(url))
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kit.test_db", url], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        answered = [int(child.stdout.readline()) for _ in range(50)]
        child.send_signal(signal.SIGKILL)
    engine = create_engine(url)
    with engine.connect() as connection:
        kept = set(connection.execute(select(NUMBERS.c.number)).scalars())
    engine.dispose()
    assert set(answered) <= kept


@pytest.mark.parametrize("service", ["jobs", "registry", "metrics", "gateway"])
def test_migrations_make_the_tables_of_the_code(service: str, url: str) -> None:
    metadata = migrate.metadata(service)
    migrate.upgrade(url, service, metadata)
    migrate.check(url, service, metadata)
    migrate.upgrade(url, service, metadata)  # a second start finds nothing to do


async def _write_for_ever(url: str) -> None:
    database, number = Database(url, SCHEMA), 0
    while True:
        number += 1
        await database.write(lambda s, n=number: s.execute(insert(NUMBERS).values(number=n)))  # type: ignore[misc]
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_write_for_ever(sys.argv[1]))
