"""Series of nodes by the minute and the hour, error lines, and what narrows a search in logs."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, kind in (("sort_us", sa.BigInteger), ("max_level", sa.Integer), ("max_step", sa.BigInteger)):
        op.add_column("log_chunks", sa.Column(name, kind, nullable=False, server_default="0"))
    op.execute("UPDATE log_chunks SET sort_us = time_us")
    order = ["job_id", "epoch", "sort_us", "rank", "offset", "max_level", "max_step", "time_us"]
    op.create_index("ix_log_chunks_order", "log_chunks", order)
    op.create_table(
        "error_lines",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=32), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_time_us", sa.BigInteger(), nullable=False),
        sa.Column("last_time_us", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "digest"),
    )
    op.create_table(
        "node_series",
        sa.Column("job_id", sa.String(length=80), nullable=False),
        sa.Column("resolution", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("num_points", sa.Integer(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "resolution", "key", "start"),
    )
