"""All streams, buckets and fixed consumers of JetStream, in one table, made or mended at start.

| stream  | retention | when full | why |
|---|---|---|---|
| EVENTS  | 30 days | oldest go | truth lives in the databases; this is how others hear of it |
| CMD     | work queue | newest are refused | a command is gone once its node took it |
| METRICS | interest | newest are refused | an outage of ingest pushes back on the agents' spools |
| LOGS    | interest | newest are refused | as METRICS |
| SPANS   | 1 day | oldest go | for people to look at: a loss is a gap in a trace |
| DEAD    | 30 days | oldest go | what no consumer could use, for people to look at |
| KV_lease | one message a key | | leases with a time to live |

Interest retention drops what arrives while no consumer exists. So METRICS and LOGS are made with a subject
nobody uses, get their consumers, and only then their real subjects: no instant is left in which a batch is
acknowledged and thrown away.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith_kit.connection import ApiError, Connection
from tunesmith_kit.subjects import ENTITIES, FLEET, ROOT

log = logging.getLogger(__name__)

_SECOND = 10**9
_DAY = 24 * 3600 * _SECOND
_MIB = 1024 * 1024

EVENTS, CMD, METRICS, LOGS, SPANS, DEAD = "EVENTS", "CMD", "METRICS", "LOGS", "SPANS", "DEAD"
LEASE_BUCKET = "lease"
INGEST, LOGSTORE = "ingest", "logstore"

_STREAM_EXISTS = 10058
_NOT_FOUND = 404


@dataclass(frozen=True)
class Durable:
    """A consumer of a stream that several processes may share. `ack_wait` in seconds."""

    stream: str
    name: str
    filter_subjects: tuple[str, ...] = ()
    ack_wait: float = 10.0
    max_ack_pending: int = 1000

    def config(self) -> dict[str, object]:
        """The consumer as the JetStream API wants it. The server never gives up on a message: we do."""
        config: dict[str, object] = {
            "durable_name": self.name,
            "name": self.name,
            "ack_policy": "explicit",
            "deliver_policy": "all",
            "replay_policy": "instant",
            "ack_wait": int(self.ack_wait * _SECOND),
            "max_deliver": -1,
            "max_ack_pending": self.max_ack_pending,
        }
        if self.filter_subjects:
            config["filter_subjects"] = list(self.filter_subjects)
        return config


@dataclass(frozen=True)
class Stream:
    """A stream of the table; sizes in bytes, times in nanoseconds as JetStream wants them."""

    name: str
    subjects: tuple[str, ...]
    retention: str
    discard: str
    max_bytes: int
    max_age: int = 0
    duplicate_window: int = 120 * _SECOND
    durables: tuple[Durable, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)

    def config(self, num_replicas: int) -> dict[str, object]:
        """The stream as the JetStream API wants it."""
        return {
            "name": self.name,
            "subjects": list(self.subjects),
            "retention": self.retention,
            "discard": self.discard,
            "max_bytes": self.max_bytes,
            "max_age": self.max_age,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "max_msg_size": -1,
            "max_consumers": -1,
            "duplicate_window": self.duplicate_window,
            "storage": "file",
            "num_replicas": num_replicas,
            "allow_direct": True,
            **self.extra,
        }


STREAMS: tuple[Stream, ...] = (
    Stream(
        name=EVENTS,
        subjects=tuple(f"{ROOT}.*.{entity}.*.evt.>" for entity in ENTITIES),
        retention="limits",
        discard="old",
        max_bytes=1024 * _MIB,
        max_age=30 * _DAY,
        # The outbox relay may publish a row again after a restart; a day covers any outage of a service.
        duplicate_window=_DAY,
    ),
    Stream(
        name=CMD,
        subjects=(f"{ROOT}.cmd.node.*.*",),
        retention="workqueue",
        discard="new",
        max_bytes=64 * _MIB,
        max_age=_DAY,
        duplicate_window=3600 * _SECOND,
    ),
    Stream(
        name=METRICS,
        subjects=(f"{ROOT}.*.job.*.met.*.*", f"{ROOT}.{FLEET}.node.*.met.*.*"),
        retention="interest",
        discard="new",
        max_bytes=2048 * _MIB,
        durables=(Durable(METRICS, INGEST, max_ack_pending=10_000),),
    ),
    Stream(
        name=LOGS,
        subjects=(f"{ROOT}.*.job.*.log.*.*",),
        retention="interest",
        discard="new",
        max_bytes=1024 * _MIB,
        durables=(Durable(LOGS, LOGSTORE, max_ack_pending=10_000),),
    ),
    Stream(
        name=SPANS,
        subjects=(f"{ROOT}.spans.*",),
        retention="limits",
        discard="old",
        max_bytes=64 * _MIB,
        max_age=_DAY,
    ),
    Stream(
        name=DEAD,
        subjects=(f"{ROOT}.dead.*",),
        retention="limits",
        discard="old",
        max_bytes=128 * _MIB,
        max_age=30 * _DAY,
    ),
    Stream(
        name=f"KV_{LEASE_BUCKET}",
        subjects=(f"$KV.{LEASE_BUCKET}.>",),
        retention="limits",
        discard="new",
        max_bytes=16 * _MIB,
        extra={
            "max_msgs_per_subject": 1,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_msg_ttl": True,
            "subject_delete_marker_ttl": 5 * _SECOND,
        },
    ),
)


def fixed_durable(stream: str, name: str) -> Durable | None:
    """The durable of the table with this name, if it is one of them."""
    for entry in STREAMS:
        for durable in entry.durables:
            if (durable.stream, durable.name) == (stream, name):
                return durable
    return None


async def ensure(connection: Connection, num_replicas: int = 1) -> None:
    """Makes every stream and consumer of the table or mends it; harmless when all is as it should be.

    Replicas are never reduced, so a process with the default of one cannot weaken a cluster's streams. Raises
    `ApiError` when JetStream refuses or is not ready.
    """
    for stream in STREAMS:
        await _ensure_stream(connection, stream, num_replicas)


async def missing(connection: Connection) -> bool:
    """Whether a stream of the table is gone. Raises `ApiError` when JetStream does not answer."""
    known = (await connection.api("STREAM.NAMES", {"offset": 0})).get("streams") or ()
    return any(stream.name not in known for stream in STREAMS)


async def _ensure_stream(connection: Connection, stream: Stream, num_replicas: int) -> None:
    found = await _find(connection, f"STREAM.INFO.{stream.name}")
    if found is None:
        await _create(connection, stream, num_replicas)
    wanted = stream.config(max(num_replicas, found["config"]["num_replicas"] if found else 1))
    for durable in stream.durables:
        await ensure_durable(connection, durable)
    if found is None or _differs(found["config"], wanted):
        await connection.api(f"STREAM.UPDATE.{stream.name}", wanted)


async def _create(connection: Connection, stream: Stream, num_replicas: int) -> None:
    config = stream.config(num_replicas)
    if stream.durables:
        config["subjects"] = [f"{ROOT}.boot.{stream.name.lower()}"]
    try:
        await connection.api(f"STREAM.CREATE.{stream.name}", config)
    except ApiError as error:
        if error.err_code != _STREAM_EXISTS:  # another process made it meanwhile
            raise
    else:
        log.info("stream made", extra={"stream": stream.name})


async def ensure_durable(connection: Connection, durable: Durable) -> None:
    """Makes the consumer or mends it. Raises `ApiError`, with code 404 when the stream is missing."""
    body = {"stream_name": durable.stream, "config": durable.config()}
    await connection.api(f"CONSUMER.CREATE.{durable.stream}.{durable.name}", body, deadline=1.5)


async def _find(connection: Connection, path: str) -> dict[str, Any] | None:
    try:
        # A cluster without a leader stays silent; asking again soon beats waiting long.
        return await connection.api(path, deadline=1.0)
    except ApiError as error:
        if error.code == _NOT_FOUND:
            return None
        raise


def _differs(found: Mapping[str, object], wanted: Mapping[str, object]) -> bool:
    # The server leaves out false and zero, and adds fields of its own.
    return any(found.get(key, type(value)()) != value for key, value in wanted.items())
