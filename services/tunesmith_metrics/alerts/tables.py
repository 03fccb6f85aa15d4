"""The tables of alerts, beside those of the metrics store and under the same revision."""

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, String, Table

from tunesmith_kit.idempotency import request_table
from tunesmith_metrics.tables import LOG_CHUNKS, METADATA, SEGMENTS

REQUESTS = request_table(METADATA)

# What is judged is read in the order in which it was stored, over all jobs.
Index("ix_segments_stored", SEGMENTS.c.revision)
Index("ix_log_chunks_stored", LOG_CHUNKS.c.revision)

# Rules (`body` is an AlertRule). `uid` is made anew when what the rule looks for changes; it judges nothing
# that was stored up to `since_revision`.
RULES = Table(
    "alert_rules",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("uid", String(32), nullable=False),
    Column("since_revision", BigInteger, nullable=False),
    Column("since_us", BigInteger, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

# What the engine knows of a job or node: facts, how far each rank was read, where each rule stands (JSON).
SUBJECTS = Table(
    "alert_subjects",
    METADATA,
    Column("subject", String(256), primary_key=True),
    Column("ended_us", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("ix_alert_subjects_ended", "ended_us"),
)

# Alerts (`body` is an Alert). `held`: a silence kept its channels quiet. `told_us`: when they were told last.
ALERTS = Table(
    "alerts",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("project", String(64), nullable=False),
    Column("rule_id", String(64), nullable=False),
    Column("rule_uid", String(32), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("state", Integer, nullable=False),
    Column("held", Boolean, nullable=False),
    Column("told_us", BigInteger, nullable=False),
    Column("begin_us", BigInteger, nullable=False),
    Column("end_us", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("ix_alerts_revision", "project", "revision"),
    Index("ix_alerts_begin", "project", "begin_us", "id"),
    Index("ix_alerts_state", "state", "rule_uid"),
)

# Silences (`body` is a Silence).
SILENCES = Table(
    "alert_silences",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("id", String(32), primary_key=True),
    Column("start_us", BigInteger, nullable=False),
    Column("end_us", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("ix_alert_silences_end", "project", "end_us"),
)

# Channels (`body` is an AlertChannel with its secrets, which leave this table only towards the target).
CHANNELS = Table(
    "alert_channels",
    METADATA,
    Column("project", String(64), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

# The outbox: what channels are told (`alert` is the Alert as it stood).
NOTICES = Table(
    "alert_notifications",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("project", String(64), nullable=False),
    Column("alert_id", String(32), nullable=False),
    Column("channel_id", String(64), nullable=False),
    Column("state", Integer, nullable=False),
    Column("delivery", Integer, nullable=False),
    Column("num_tries", Integer, nullable=False),
    Column("problem", String(1000), nullable=False),
    Column("create_us", BigInteger, nullable=False),
    Column("deliver_us", BigInteger, nullable=False),
    Column("next_try_us", BigInteger, nullable=False),
    Column("alert", LargeBinary, nullable=False),
    Index("ix_alert_notifications_due", "delivery", "next_try_us"),
    Index("ix_alert_notifications_time", "project", "create_us", "id"),
    Index("ix_alert_notifications_alert", "alert_id"),
)

# One row: what the engine has judged and written down. `safe_revision` is older than `revision` while parts
# of a rank's records wait for those before them.
CURSOR = Table(
    "alert_cursor",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("history_revision", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("rules_version", BigInteger, nullable=False),
    Column("holder", String(32), nullable=False),
    Column("holder_until_us", BigInteger, nullable=False),
)

# Events of jobs and nodes as they were heard (`payload` is a JobEvent or NodeEvent).
HISTORY = Table(
    "alert_history",
    METADATA,
    Column("event_id", String(64), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("subject", String(256), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("ix_alert_history_revision", "revision"),
    Index("ix_alert_history_subject", "subject", "revision"),
    Index("ix_alert_history_time", "time_us"),
)
