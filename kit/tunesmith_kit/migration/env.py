"""Alembic's environment of every service; `tunesmith_kit.migrate` passes connection and tables in."""

from typing import Any, Literal

from alembic import context


def render_item(kind: str, item: Any, _context: object) -> str | Literal[False]:
    """Writes SQLModel's text type as the plain one, so that a migration needs SQLAlchemy only."""
    if kind == "type" and type(item).__module__.startswith("sqlmodel"):
        return f"sa.String(length={item.length})"
    return False


attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    target_metadata=attributes["metadata"],
    compare_type=True,
    render_as_batch=True,
    render_item=render_item,
)
with context.begin_transaction():
    context.run_migrations()
