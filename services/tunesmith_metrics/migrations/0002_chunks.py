"""Compressed chunks of curves, rich values, policies."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("watermarks", sa.Column("num_points", sa.BigInteger(), server_default="0", nullable=False))
    with op.batch_alter_table("segments", schema=None) as batch_op:
        batch_op.drop_column("min_step")
        batch_op.drop_column("max_step")

    op.create_table(
        "chunks",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("num_points", sa.Integer(), nullable=False),
        sa.Column("min_step", sa.BigInteger(), nullable=False),
        sa.Column("max_step", sa.BigInteger(), nullable=False),
        sa.Column("min_value", sa.Float(precision=53), nullable=True),
        sa.Column("max_value", sa.Float(precision=53), nullable=True),
        sa.Column("last_value", sa.Float(precision=53), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "key", "epoch", "rank", "first_seq"),
    )
    op.create_index("ix_chunks_revision", "chunks", ["job_id", "revision"], unique=False)
    op.create_table(
        "rich_values",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "step", "key"),
    )
    op.create_index("ix_rich_values_revision", "rich_values", ["job_id", "revision"], unique=False)
    op.create_table(
        "metric_keys",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "key"),
    )
    op.execute("INSERT INTO metric_keys (job_id, key) SELECT job_id, key FROM metric_summaries")
    op.create_table(
        "summed",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    # What is there was counted when it came.
    op.execute("INSERT INTO summed (id, revision) SELECT 1, value FROM revision WHERE id = 1")
    op.create_table(
        "policies",
        sa.Column("project", sa.String(length=64), nullable=False),
        sa.Column("max_points", sa.BigInteger(), nullable=False),
        sa.Column("max_keys_per_job", sa.Integer(), nullable=False),
        sa.Column("keep_days", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project"),
    )
