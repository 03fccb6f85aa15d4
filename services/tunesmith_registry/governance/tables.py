"""The tables of governance. `body` holds the whole message, the other columns what is searched for."""

from sqlalchemy import BigInteger, Column, DateTime, Index, Integer, LargeBinary, String, Table, Text

from tunesmith_registry.tables import METADATA

# `model_id` is `-` for the policy of the whole project.
MODEL_POLICIES = Table(
    "model_policies",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("model_id", String(64), primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

# `id` is a ULID, so the newest comes last.
PROMOTIONS = Table(
    "promotions",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("model_id", String(64), primary_key=True),
    Column("id", String(26), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("state", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

CARD_SECTIONS = Table(
    "card_sections",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("model_id", String(64), primary_key=True),
    Column("etag", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
)

# What the registry heard of jobs: their spec as canonical JSON, their pinned inputs, their attempts.
JOB_RECORDS = Table(
    "job_records",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("job_id", String(64), primary_key=True),
    Column("spec", Text, nullable=False),
    Column("forked_from", String(64), nullable=False),
    Column("base_model", String(200), nullable=False),
    Column("base_model_digest", String(64), nullable=False),
    Column("dataset_version", String(200), nullable=False),
    Column("dataset_digest", String(64), nullable=False),
    Column("prompt", String(200), nullable=False),
    Column("prompt_digest", String(64), nullable=False),
    Column("creator", String(128), nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
    Index("ix_job_records_dataset", "project", "dataset_version"),
    Index("ix_job_records_base", "project", "base_model"),
)

# What the text about a model or base model means: float16, little endian, of length 1. `encoder` names who
# made it, `text_digest` the text: of another text it says nothing.
TEXT_VECTORS = Table(
    "text_vectors",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("resource", String(300), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("encoder", String(32), nullable=False),
    Column("text_digest", String(32), nullable=False),
    Column("vector", LargeBinary, nullable=False),
    Index("ix_text_vectors_revision", "project", "revision"),
)
