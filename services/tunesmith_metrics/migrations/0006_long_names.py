"""nodes may have names of 63 letters"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TABLES = (
    "runs",
    "watermarks",
    "segments",
    "chunks",
    "rich_values",
    "metric_keys",
    "metric_summaries",
    "log_chunks",
    "error_lines",
)


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        return  # it holds no text to a length, and would copy each table
    for table in _TABLES:
        op.alter_column(table, "job_id", type_=sa.String(length=72), existing_nullable=False)
