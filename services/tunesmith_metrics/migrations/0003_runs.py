"""What the jobs service tells of jobs, for the table of runs."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, length in (("display_name", 256), ("experiment", 64), ("state", 32)):
        op.add_column("runs", sa.Column(name, sa.String(length), nullable=False, server_default=""))
    for name in ("labels", "config"):
        op.add_column("runs", sa.Column(name, sa.Text, nullable=False, server_default="{}"))
    for name in ("create_time_us", "job_revision", "revision"):
        op.add_column("runs", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("ix_runs_revision", "runs", ["project", "revision"])
