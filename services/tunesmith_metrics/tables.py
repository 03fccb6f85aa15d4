"""The tables of the metrics service: batches as they came, and beside them what queries need."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

from tunesmith_kit.db import revision_table

METADATA = MetaData()
REVISION = revision_table(METADATA)

# The project of each job that ever sent something.
RUNS = Table(
    "runs",
    METADATA,
    Column("job_id", String(64), primary_key=True),
    Column("project", String(64), nullable=False),
)

# How far the records of a rank are stored without a gap.
WATERMARKS = Table(
    "watermarks",
    METADATA,
    Column("job_id", String(64), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("metrics_seq", BigInteger, nullable=False),
    Column("log_offset", BigInteger, nullable=False),
)

# Metric batches (`payload` is a MetricBatch). No two rows of a rank hold the same sequence number.
SEGMENTS = Table(
    "segments",
    METADATA,
    Column("job_id", String(64), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("first_seq", BigInteger, primary_key=True),
    Column("num_records", Integer, nullable=False),
    Column("min_step", BigInteger, nullable=False),
    Column("max_step", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("ix_segments_revision", "job_id", "revision"),
)

# Last value, count and extremes of each metric. SQLite keeps no NaN: NULL stands for it. `stale`: a step came
# again or late, so count and extremes must be taken from the points when somebody asks.
SUMMARIES = Table(
    "metric_summaries",
    METADATA,
    Column("job_id", String(64), primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("last_step", BigInteger, nullable=False),
    Column("last_epoch", BigInteger, nullable=False),
    Column("last_value", Float(53), nullable=True),
    Column("num_points", BigInteger, nullable=False),
    Column("min_value", Float(53), nullable=True),
    Column("max_value", Float(53), nullable=True),
    Column("stale", Boolean, nullable=False),
)

# Parts of logs (`payload` is a LogChunk). No two rows of a rank hold the same byte.
LOG_CHUNKS = Table(
    "log_chunks",
    METADATA,
    Column("job_id", String(64), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("num_bytes", BigInteger, nullable=False),
    Column("num_lines", Integer, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("ix_log_chunks_revision", "job_id", "revision"),
)
