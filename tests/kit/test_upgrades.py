"""Databases that are in use are brought to the newest form, step by step, and lose no row."""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import pytest
from sqlalchemy import Column, Connection, MetaData, Table, create_engine, func, insert, select, text
from sqlalchemy.engine import Engine

from tunesmith_kit import migrate

_NUM_ROWS = 2


@pytest.mark.parametrize("service", ["jobs", "registry", "metrics", "gateway"])
def test_an_upgrade_keeps_every_row(service: str, url: str) -> None:
    tables = migrate.metadata(service)
    folder = files(f"tunesmith_{service}") / "migrations"
    revisions = sorted(file.name[:4] for file in folder.iterdir() if file.name[:4].isdecimal())
    known: dict[str, int] = {}
    engine = create_engine(url)
    try:
        for revision in revisions:
            migrate.upgrade(url, service, tables, to=revision)
            counts = _filled(engine, service, known)
            assert known.items() <= counts.items(), f"rows are gone since {revision}"
            known = counts
        migrate.check(url, service, tables)
        assert known, "no table was filled"
    finally:
        engine.dispose()


def _filled(engine: Engine, service: str, known: Mapping[str, int]) -> dict[str, int]:
    """Puts rows into the tables that are new, and counts those of all."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL search_path TO {service}"))
        tables = MetaData()
        tables.reflect(connection)
        counts = {}
        for table in tables.sorted_tables:
            if table.name not in known and table.name != "alembic_version":
                _fill(connection, table)
            counts[table.name] = connection.execute(select(func.count()).select_from(table)).scalar_one()
    return counts


def _fill(connection: Connection, table: Table) -> None:
    before = connection.execute(select(func.count()).select_from(table)).scalar_one()
    rows = [
        {column.name: _value(column, number) for column in table.columns}
        for number in range(before + 1, _NUM_ROWS + 1)
    ]
    if rows:
        connection.execute(insert(table), rows)


def _value(column: Column[Any], number: int) -> object:
    """A value that the column takes, another for each number."""
    kind = column.type.as_generic()
    values: dict[str, object] = {
        "String": f"{number}",
        "Text": "{}",
        "JSON": [],
        "DateTime": datetime(2026, 11, number, tzinfo=UTC),
        "Boolean": number % 2 == 0,
        "LargeBinary": bytes([number]),
        "Float": number + 0.5,
        "Double": number + 0.5,
        "Integer": number,
        "BigInteger": number,
    }
    return values[type(kind).__name__]
