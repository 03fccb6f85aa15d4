"""The tables of the registry. `body` holds the whole message, the other columns what is searched for."""

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from tunesmith_kit.db import revision_table
from tunesmith_kit.idempotency import request_table
from tunesmith_kit.outbox import outbox_table

METADATA = MetaData()
REVISION = revision_table(METADATA)
REQUESTS = request_table(METADATA)
OUTBOX = outbox_table(METADATA)

# `uid` is the ULID that stands in subjects of events.
DATASETS = Table(
    "datasets",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("uid", String(26), nullable=False),
    Column("description", Text, nullable=False),
    Column("latest_version", BigInteger, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
)

DATASET_VERSIONS = Table(
    "dataset_versions",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("dataset_id", String(64), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("project", "dataset_id", "digest", name="uq_dataset_versions_digest"),
)

BASE_MODELS = Table(
    "base_models",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("uid", String(26), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
)

MODELS = Table(
    "models",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("uid", String(26), nullable=False),
    Column("latest_version", BigInteger, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
)

MODEL_VERSIONS = Table(
    "model_versions",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("model_id", String(64), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("stage", Integer, nullable=False),
    Column("job", String(200), nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("job", name="uq_model_versions_job"),
)

CHECKPOINTS = Table(
    "checkpoints",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("job_id", String(64), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    # Of the jobs service's event it was last taken from: events are heard several at once.
    Column("revision", BigInteger, nullable=False, server_default="0"),
    Column("body", LargeBinary, nullable=False),
)

# Events of the jobs service that were answered, so that a second delivery changes nothing.
ANSWERED = Table(
    "answered_events",
    METADATA,
    Column("event_id", String(26), primary_key=True),
    Column("time", DateTime(timezone=True), nullable=False),
    Index("ix_answered_events_time", "time"),
)

# Names of versions that people may move.
MODEL_ALIASES = Table(
    "model_aliases",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("model_id", String(64), primary_key=True),
    Column("alias", String(40), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("update_time", DateTime(timezone=True), nullable=False),
    Index("ix_model_aliases_version", "project", "model_id", "version"),
)

STAGE_CHANGES = Table(
    "stage_changes",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("model_id", String(64), primary_key=True),
    # The revision of its event.
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),
    Column("to_stage", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

# One chain a project; see ledger.py.
RECEIPTS = Table(
    "receipts",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(64), nullable=False),
    # What it is about: of a registered version the version, though the event is about its job.
    Column("resource", String(300), nullable=False),
    Column("body", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("signature", String(128), nullable=False),
    Column("key_id", String(16), nullable=False),
    Index("ix_receipts_resource", "project", "resource"),
    # Those that wait for their signature have none.
    Index("ix_receipts_key_id", "key_id"),
)
