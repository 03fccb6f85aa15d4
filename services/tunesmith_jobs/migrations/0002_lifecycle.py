"""lifecycle"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _json(text: Any) -> Any:
    """SQLite keeps JSON as text; a cast there would make a number of it."""
    return text if op.get_bind().dialect.name == "sqlite" else sa.cast(text, sa.JSON)


def upgrade() -> None:
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.add_column(sa.Column("published_to", sa.String(length=40), nullable=True))
    op.create_table(
        "checkpoints",
        sa.Column("job_id", sa.String(length=26), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("eval_loss", sa.Float(), nullable=True),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("expired", sa.Boolean(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "step"),
    )
    with op.batch_alter_table("checkpoints", schema=None) as batch_op:
        batch_op.create_index("ix_checkpoints_digest", ["digest"], unique=False)

    op.create_table(
        "quotas",
        sa.Column("project", sa.String(length=64), nullable=False),
        sa.Column("max_running_jobs", sa.Integer(), nullable=True),
        sa.Column("max_gpus", sa.Integer(), nullable=True),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project"),
    )
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("failure_class", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("trained_seconds", sa.Float(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("wanted", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("stop_time", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("checkpoint_request", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("held_for", sa.String(length=26), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("members", sa.String(length=65536), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("places", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("rendezvous", sa.String(length=300), nullable=False, server_default=""))
    attempts = sa.table(
        "attempts", *(sa.column(name, sa.String) for name in ("node", "members", "places", "gpus"))
    )
    op.execute(
        attempts.update().values(
            members="|" + attempts.c.node + "|",
            places=_json('[["' + attempts.c.node + '", ' + sa.cast(attempts.c.gpus, sa.String) + "]]"),
        )
    )
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.drop_column("gpus")

    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("deleted", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("last_node", sa.String(length=63), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("trained_seconds", sa.Float(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("queued_time", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("parent_id", sa.String(length=26), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("move_node", sa.String(length=63), nullable=False, server_default=""))
        batch_op.create_index("ix_jobs_parent", ["parent_id"], unique=False)
        batch_op.create_index("ix_jobs_move", ["move_node"], unique=False)
        batch_op.create_index("ix_jobs_share", ["project", "state"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.drop_column("published_to")

    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index("ix_jobs_share")
        batch_op.drop_index("ix_jobs_parent")
        batch_op.drop_index("ix_jobs_move")
        batch_op.drop_column("move_node")
        batch_op.drop_column("parent_id")
        batch_op.drop_column("queued_time")
        batch_op.drop_column("trained_seconds")
        batch_op.drop_column("last_node")
        batch_op.drop_column("deleted")

    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("gpus", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.drop_column("rendezvous")
        batch_op.drop_column("places")
        batch_op.drop_column("members")
        batch_op.drop_column("held_for")
        batch_op.drop_column("stop_time")
        batch_op.drop_column("wanted")
        batch_op.drop_column("trained_seconds")
        batch_op.drop_column("failure_class")

    op.drop_table("quotas")
    with op.batch_alter_table("checkpoints", schema=None) as batch_op:
        batch_op.drop_index("ix_checkpoints_digest")

    op.drop_table("checkpoints")
