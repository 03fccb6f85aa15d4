"""Every subject on the bus, built and read in one place.

    tunesmith.v1.{project}.job.{job}.evt.{event}        events, stream EVENTS (also dataset, model, …)
    tunesmith.v1.{project}.job.{job}.met.{epoch}.{rank} metric batches, stream METRICS
    tunesmith.v1.{project}.job.{job}.log.{epoch}.{rank} log chunks, stream LOGS
    tunesmith.v1.{project}.job.{job}.wm.{epoch}.{rank}  watermarks, not stored
    tunesmith.v1.fleet.node.{node}.evt.{event}          events of nodes, stream EVENTS
    tunesmith.v1.fleet.node.{node}.hb                   heartbeats, not stored
    tunesmith.v1.fleet.node.{node}.met.{epoch}.{rank}   a node's own series, stream METRICS
    tunesmith.v1.{project}.job.{job}.viewed             somebody watches a job's curves, not stored
    tunesmith.v1.fleet.node.{node}.chat.{part}        answers of models: status, task, hold; not stored
    tunesmith.v1.cmd.node.{node}.{verb}                 commands, stream CMD
    tunesmith.v1.spans.{service}                        spans of jobs' traces, stream SPANS
    tunesmith.v1.dead.{stream}                          messages no consumer could use, stream DEAD

Builders take ids only and refuse anything that could reach beyond its token (dots, wildcards, white space).
"""

import re
from dataclasses import dataclass

from tunesmith.errors import InvalidArgument

ROOT = "tunesmith.v1"
FLEET = "fleet"
NODE_RANK = 65535  # stands for the node itself among the ranks
ENTITIES = ("job", "model", "dataset", "node", "sweep", "evaluation", "audit", "prompt")

_TOKEN = re.compile(r"[a-z0-9_-]{1,128}")


def token(text: str, field: str = "subject") -> str:
    """The text itself if it may stand between two dots of a subject; else `InvalidArgument`."""
    if _TOKEN.fullmatch(text) is None:
        raise InvalidArgument(
            "NAME_INVALID",
            "this cannot be part of a subject",
            field=field,
            value=text,
            remedy="use lower-case letters, digits, dashes and underscores only",
        )
    return text


def event(project: str, entity: str, entity_id: str, name: str) -> str:
    """Subject of an event, for example `event("default", "job", job_id, "created")`."""
    parts = (token(project, "project"), token(entity, "entity"), token(entity_id, "id"))
    return f"{ROOT}.{'.'.join(parts)}.evt.{token(name, 'event')}"


def job_event(project: str, job_id: str, name: str) -> str:
    """Subject of an event about a job."""
    return event(project, "job", job_id, name)


def node_event(node: str, name: str) -> str:
    """Subject of an event about a node."""
    return event(FLEET, "node", node, name)


def heartbeat(node: str) -> str:
    """Subject of a node's heartbeats (core, not stored)."""
    return f"{ROOT}.{FLEET}.node.{token(node, 'node')}.hb"


def command(node: str, verb: str) -> str:
    """Subject of a command to a node's agent."""
    return f"{ROOT}.cmd.node.{token(node, 'node')}.{token(verb, 'verb')}"


def metrics(project: str, job_id: str, epoch: int, rank: int) -> str:
    """Subject of a rank's metric batches."""
    return _rank(project, job_id, "met", epoch, rank)


def logs(project: str, job_id: str, epoch: int, rank: int) -> str:
    """Subject of a rank's log chunks."""
    return _rank(project, job_id, "log", epoch, rank)


def watermark(project: str, job_id: str, epoch: int, rank: int) -> str:
    """Subject of a rank's watermarks (core, not stored)."""
    return _rank(project, job_id, "wm", epoch, rank)


def node_metrics(node: str, epoch: int) -> str:
    """Subject of a node's own series; `epoch` is when its agent started, Unix time in milliseconds."""
    return f"{ROOT}.{FLEET}.node.{token(node, 'node')}.met.{epoch}.{NODE_RANK}"


def node_watermark(node: str, epoch: int) -> str:
    """Subject of the watermarks of a node's own series (core, not stored)."""
    return f"{ROOT}.{FLEET}.node.{token(node, 'node')}.wm.{epoch}.{NODE_RANK}"


def viewed(project: str, job_id: str) -> str:
    """Where those who show a job's curves say so (core): its agents send at shorter intervals then."""
    return f"{ROOT}.{token(project, 'project')}.job.{token(job_id, 'job')}.viewed"


def any_viewed() -> str:
    """The same of all jobs."""
    return f"{ROOT}.*.job.*.viewed"


def chat_status(node: str) -> str:
    """Where a node tells what it could answer (core, not stored)."""
    return f"{ROOT}.{FLEET}.node.{token(node, 'node')}.chat.status"


def chat_task(node: str) -> str:
    """Where a node takes conversations to answer (core, not stored)."""
    return f"{ROOT}.{FLEET}.node.{token(node, 'node')}.chat.task"


def chat_hold(node: str) -> str:
    """Where a node hears which answers are still waited for (core, not stored)."""
    return f"{ROOT}.{FLEET}.node.{token(node, 'node')}.chat.hold"


def any_chat_status() -> str:
    """Filter for what all nodes could answer."""
    return f"{ROOT}.{FLEET}.node.*.chat.status"


def chat_call() -> str:
    """Where somebody asks all nodes to tell at once what they could answer (core, not stored)."""
    return f"{ROOT}.{FLEET}.chat.call"


def spans(service: str) -> str:
    """Subject of the finished spans of a service."""
    return f"{ROOT}.spans.{token(service, 'service')}"


def dead(stream: str) -> str:
    """Subject of the dead letters of a stream."""
    return f"{ROOT}.dead.{token(stream.lower(), 'stream')}"


def any_event(entity: str, *names: str) -> list[str]:
    """Filters for events of all projects about one kind of entity: all of them, or those named."""
    prefix = f"{ROOT}.*.{token(entity, 'entity')}.*.evt"
    return [f"{prefix}.{token(name, 'event')}" for name in names] or [f"{prefix}.>"]


def any_command(node: str) -> str:
    """Filter for all commands to a node."""
    return f"{ROOT}.cmd.node.{token(node, 'node')}.*"


def any_heartbeat() -> str:
    """Filter for the heartbeats of all nodes."""
    return f"{ROOT}.{FLEET}.node.*.hb"


def any_watermark(project: str, job_id: str) -> str:
    """Filter for all watermarks of a job."""
    return f"{ROOT}.{token(project, 'project')}.job.{token(job_id, 'job')}.wm.*.*"


def _rank(project: str, job_id: str, kind: str, epoch: int, rank: int) -> str:
    if epoch < 0 or rank < 0:
        raise InvalidArgument(
            "NAME_INVALID", "epoch and rank count from 0", field="subject", value=f"{epoch}.{rank}"
        )
    return f"{ROOT}.{token(project, 'project')}.job.{token(job_id, 'job')}.{kind}.{epoch}.{rank}"


@dataclass(frozen=True, slots=True)
class RankSubject:
    """A metric, log or watermark subject, taken apart. `job_id` of a node's own series is `node.{node}`."""

    project: str
    job_id: str
    kind: str
    epoch: int
    rank: int


@dataclass(frozen=True, slots=True)
class EventSubject:
    """An event's subject, taken apart."""

    project: str
    entity: str
    entity_id: str
    name: str


_RANK = re.compile(
    rf"{re.escape(ROOT)}\.([a-z0-9_-]+)\.(job|node)\.([a-z0-9_-]+)"
    r"\.(met|log|wm)\.([0-9]{1,18})\.([0-9]{1,9})"
)
_EVENT = re.compile(rf"{re.escape(ROOT)}\.([a-z0-9_-]+)\.([a-z0-9_-]+)\.([a-z0-9_-]+)\.evt\.([a-z0-9_-]+)")


def parse_rank(subject: str) -> RankSubject:
    """Takes a metric, log or watermark subject apart; `InvalidArgument` for any other."""
    match = _RANK.fullmatch(subject)
    if match is None:
        raise InvalidArgument("NAME_INVALID", "not the subject of a rank", field="subject", value=subject)
    project, entity, entity_id, kind, epoch, rank = match.groups()
    if (entity == "node") != (project == FLEET):
        raise InvalidArgument("NAME_INVALID", "nodes are the fleet's", field="subject", value=subject)
    owner = f"node.{entity_id}" if entity == "node" else entity_id
    return RankSubject(project, owner, kind, int(epoch), int(rank))


def parse_event(subject: str) -> EventSubject:
    """Takes an event's subject apart; `InvalidArgument` for any other."""
    match = _EVENT.fullmatch(subject)
    if match is None:
        raise InvalidArgument("NAME_INVALID", "not the subject of an event", field="subject", value=subject)
    return EventSubject(*match.groups())
