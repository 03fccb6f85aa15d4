"""The tables of evaluations. Promotion gates, cards, lineage and search read `EVALUATION_SCORES`."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
)

from tunesmith_registry.tables import METADATA

# `body` is the whole message; `id` is that of the job that made it.
EVALUATIONS = Table(
    "evaluations",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("id", String(64), primary_key=True),
    # Grows with each evaluation entered: the order of lists.
    Column("revision", BigInteger, nullable=False),
    Column("job", String(200), nullable=False),
    # Resource name and digest of the dataset version.
    Column("dataset_version", String(200), nullable=False),
    Column("dataset_digest", String(64), nullable=False),
    # Digest of the manifest of its artifact, which holds its samples.
    Column("digest", String(64), nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("ix_evaluations_revision", "project", "revision"),
)

# One row for each target and metric of an evaluation.
EVALUATION_SCORES = Table(
    "evaluation_scores",
    METADATA,
    Column("project", String(64), primary_key=True),
    # Id of the evaluation, not its resource name.
    Column("evaluation", String(64), primary_key=True),
    Column("target_index", Integer, primary_key=True),
    Column("metric", String(100), primary_key=True),
    # Resource name of the target, with the number of a version.
    Column("target", String(300), nullable=False),
    # Digest of the target's manifest; of a base model that of its own.
    Column("target_digest", String(64), nullable=False),
    Column("dataset_version", String(200), nullable=False),
    Column("value", Float(53), nullable=False),
    Column("ci_low", Float(53), nullable=False),
    Column("ci_high", Float(53), nullable=False),
    Column("num_samples", Integer, nullable=False),
    Column("higher_is_better", Boolean, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Index("ix_evaluation_scores_target", "project", "target", "create_time"),
)
