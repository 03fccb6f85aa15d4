"""vectors of what texts mean"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "text_vectors",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("resource", sa.String(300), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("encoder", sa.String(32), nullable=False),
        sa.Column("text_digest", sa.String(32), nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_text_vectors_revision", "text_vectors", ["project", "revision"])
