"""evaluations and their scores"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "evaluations",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("job", sa.String(200), nullable=False),
        sa.Column("dataset_version", sa.String(200), nullable=False),
        sa.Column("dataset_digest", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_evaluations_revision", "evaluations", ["project", "revision"])
    op.create_table(
        "evaluation_scores",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("evaluation", sa.String(64), primary_key=True),
        sa.Column("target_index", sa.Integer, primary_key=True),
        sa.Column("metric", sa.String(100), primary_key=True),
        sa.Column("target", sa.String(300), nullable=False),
        sa.Column("target_digest", sa.String(64), nullable=False),
        sa.Column("dataset_version", sa.String(200), nullable=False),
        sa.Column("value", sa.Float(53), nullable=False),
        sa.Column("ci_low", sa.Float(53), nullable=False),
        sa.Column("ci_high", sa.Float(53), nullable=False),
        sa.Column("num_samples", sa.Integer, nullable=False),
        sa.Column("higher_is_better", sa.Boolean, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_evaluation_scores_target", "evaluation_scores", ["project", "target", "create_time"])
