"""Rows of the metrics store: what every module that writes them needs."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import Insert

# Parameters of one statement: SQLite takes 32,766, PostgreSQL 65,535.
MOST_PARAMETERS = 10_000


def upsert(session: Session, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts rows or replaces those with the same primary key."""
    if rows:
        session.execute(_upserting(table, session.get_bind().dialect.name), list(rows))


@cache
def _upserting(table: Table, dialect_name: str) -> Insert:
    """The statement is kept: building it takes longer than running it."""
    dialect = postgresql if dialect_name == "postgresql" else sqlite
    statement = dialect.insert(table)
    keys = [column.name for column in table.primary_key]
    others = {
        column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys
    }
    found: Insert = statement.on_conflict_do_update(index_elements=keys, set_=others)
    return found


def remove(session: Session, statement: Delete) -> int:
    """Deletes rows and returns how many there were."""
    return cast("CursorResult[Any]", session.execute(statement)).rowcount


def to_column(value: float) -> float | None:
    """NaN as NULL: SQLite keeps no NaN."""
    return None if math.isnan(value) else value


def from_column(value: float | None) -> float:
    """NULL as NaN."""
    return math.nan if value is None else value
