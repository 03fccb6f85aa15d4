"""Tables of prompt templates and of computed statistics."""

from sqlalchemy import BigInteger, Column, DateTime, LargeBinary, String, Table, Text, UniqueConstraint

from tunesmith_registry.tables import METADATA

PROMPTS = Table(
    "prompts",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("uid", String(26), nullable=False),
    Column("latest_version", BigInteger, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
)

PROMPT_VERSIONS = Table(
    "prompt_versions",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("prompt_id", String(64), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("project", "prompt_id", "digest", name="uq_prompt_versions_digest"),
)

# `key` is the digest of everything the statistics depend on; `error` is set when they could not be computed.
STATISTICS = Table(
    "dataset_statistics",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("dataset_version", String(300), nullable=False),
    Column("error", Text, nullable=False, server_default=""),
    Column("body", LargeBinary, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False),
)
