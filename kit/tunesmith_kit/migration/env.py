"""Alembic's environment of every service; `tunesmith_kit.migrate` passes connection and tables in."""

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"],
    target_metadata=attributes["metadata"],
    compare_type=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
