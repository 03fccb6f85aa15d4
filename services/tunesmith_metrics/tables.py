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
    Text,
    false,
)

from tunesmith_kit.db import revision_table

METADATA = MetaData()
# A job's id, or `node.` and a node's name. SQLite holds no text to a length: its tables stay as they were.
_JOB_ID = String(72).with_variant(String(64), "sqlite")
REVISION = revision_table(METADATA)

# Each job that ever sent something, or that the jobs service told of (`job_revision` is then that of the
# newest event). `labels` and `config` are JSON objects of texts. `revision`: that of the last change of the
# row or of the job's summaries.
RUNS = Table(
    "runs",
    METADATA,
    Column("job_id", _JOB_ID, primary_key=True),
    Column("project", String(64), nullable=False),
    Column("display_name", String(256), nullable=False, default="", server_default=""),
    Column("experiment", String(64), nullable=False, default="", server_default=""),
    Column("state", String(32), nullable=False, default="", server_default=""),
    Column("labels", Text, nullable=False, default="{}", server_default="{}"),
    Column("config", Text, nullable=False, default="{}", server_default="{}"),
    Column("create_time_us", BigInteger, nullable=False, default=0, server_default="0"),
    Column("job_revision", BigInteger, nullable=False, default=0, server_default="0"),
    # Whether its program writes to it itself.
    Column("external", Boolean, nullable=False, default=False, server_default=false()),
    Column("revision", BigInteger, nullable=False, default=0, server_default="0"),
    Index("ix_runs_revision", "project", "revision"),
)

# Jobs whose rows were deleted, and when: what comes late of them is not stored. The column is not called
# `job_id`, for these rows stay when those of the job go.
FORGOTTEN = Table(
    "forgotten",
    METADATA,
    Column("job", String(72), primary_key=True),
    Column("time_us", BigInteger, nullable=False),
)

# How far the records of a rank are stored without a gap, and how many points it sent.
WATERMARKS = Table(
    "watermarks",
    METADATA,
    Column("job_id", _JOB_ID, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("metrics_seq", BigInteger, nullable=False),
    Column("log_offset", BigInteger, nullable=False),
    Column("num_points", BigInteger, nullable=False, default=0, server_default="0"),
)

# Metric batches as they came, until they are compacted (`payload` is a MetricBatch, or a frame of several).
# No two rows of a rank hold the same sequence number.
SEGMENTS = Table(
    "segments",
    METADATA,
    Column("job_id", _JOB_ID, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("first_seq", BigInteger, primary_key=True),
    Column("num_records", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("ix_segments_revision", "job_id", "revision"),
)

# Points of one key of a rank, compressed (`payload` is what chunks.encode returns), with what can be told
# without reading them. `revision` is the newest of the segments they came from.
CHUNKS = Table(
    "chunks",
    METADATA,
    Column("job_id", _JOB_ID, primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("first_seq", BigInteger, primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    Column("num_points", Integer, nullable=False),
    Column("min_step", BigInteger, nullable=False),
    Column("max_step", BigInteger, nullable=False),
    Column("min_value", Float(53), nullable=True),
    Column("max_value", Float(53), nullable=True),
    Column("last_value", Float(53), nullable=True),
    Column("revision", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("ix_chunks_revision", "job_id", "revision"),
)

# Histograms, texts and pictures, one a step and key (`payload` is a RichValue).
RICH_VALUES = Table(
    "rich_values",
    METADATA,
    Column("job_id", _JOB_ID, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("kind", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("ix_rich_values_revision", "job_id", "revision"),
)

# The keys of each job, so that there are never more than its project allows.
METRIC_KEYS = Table(
    "metric_keys",
    METADATA,
    Column("job_id", _JOB_ID, primary_key=True),
    Column("key", String(256), primary_key=True),
)

# The revision up to which segments are counted in the summaries: one row.
SUMMED = Table(
    "summed",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

# How much each project may store, and for how long. 0: as the server is set.
POLICIES = Table(
    "policies",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("max_points", BigInteger, nullable=False),
    Column("max_keys_per_job", Integer, nullable=False),
    Column("keep_days", Integer, nullable=False),
)

# Last value, count and extremes of each metric. SQLite keeps no NaN: NULL stands for it. `stale`: a step came
# again or late, so count and extremes must be taken from the points when somebody asks.
SUMMARIES = Table(
    "metric_summaries",
    METADATA,
    Column("job_id", _JOB_ID, primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("last_step", BigInteger, nullable=False),
    Column("last_epoch", BigInteger, nullable=False),
    Column("last_value", Float(53), nullable=True),
    Column("num_points", BigInteger, nullable=False),
    Column("min_value", Float(53), nullable=True),
    Column("max_value", Float(53), nullable=True),
    Column("stale", Boolean, nullable=False),
)

# Parts of logs (`payload` is a LogChunk). No two rows of a rank hold the same byte. `sort_us` is when it was
# read, but never later than what follows it in the rank's log: a chunk that was sent again was read late.
LOG_CHUNKS = Table(
    "log_chunks",
    METADATA,
    Column("job_id", _JOB_ID, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("rank", Integer, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("num_bytes", BigInteger, nullable=False),
    Column("num_lines", Integer, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("sort_us", BigInteger, nullable=False, server_default="0"),
    Column("max_level", Integer, nullable=False, server_default="0"),
    Column("max_step", BigInteger, nullable=False, server_default="0"),
    Column("revision", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("ix_log_chunks_revision", "job_id", "revision"),
    # The last three are no part of the order: a search skips chunks by them without reading the row.
    Index(
        "ix_log_chunks_order",
        *("job_id", "epoch", "sort_us", "rank", "offset"),
        *("max_level", "max_step", "time_us"),
    ),
)

# Lines that tell of errors, one row a distinct text (`digest` is that of its text without numbers), as
# they came last. The row with the empty digest counts all of a job.
ERROR_LINES = Table(
    "error_lines",
    METADATA,
    Column("job_id", _JOB_ID, primary_key=True),
    Column("digest", String(32), primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("first_time_us", BigInteger, nullable=False),
    Column("last_time_us", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("level", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
)

# Series of nodes. `resolution`: seconds between points, 1, 60 or 3600. `payload`: packed columns.
# `start` is where the row's span of time begins, Unix time in seconds.
NODE_SERIES = Table(
    "node_series",
    METADATA,
    Column("job_id", String(80), primary_key=True),
    Column("resolution", Integer, primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("start", BigInteger, primary_key=True),
    Column("num_points", Integer, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

# Spans of traces (`payload` is a TraceSpan). `job_id` is empty where the sender did not know it, as of the
# request that makes a job.
SPANS = Table(
    "spans",
    METADATA,
    Column("trace_id", String(32), primary_key=True),
    Column("span_id", String(16), primary_key=True),
    Column("job_id", String(72), nullable=False),
    Column("name", String(256), nullable=False),
    Column("start_ns", BigInteger, nullable=False),
    Column("stored_us", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("ix_spans_job", "job_id"),
    Index("ix_spans_stored", "stored_us"),
)

# The trace of each job: the span in which it was made, below which its work hangs. A program may make many
# jobs in one trace.
JOB_TRACES = Table(
    "job_traces",
    METADATA,
    Column("job_id", String(72), primary_key=True),
    Column("trace_id", String(32), nullable=False),
    Column("span_id", String(16), nullable=False),
    Column("num_left_out", BigInteger, nullable=False),
    Index("ix_job_traces_trace", "trace_id"),
)
