"""What the jobs service tells of jobs, kept beside their metrics: a table of runs asks nobody else."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from tunesmith import names as words
from tunesmith.api.jobs.v1 import events_pb2, spec_pb2, state_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_kit import names, subjects
from tunesmith_kit.bus import Bus, Consumer, Delivery
from tunesmith_kit.consumer import Rejected
from tunesmith_kit.db import Database, next_revision
from tunesmith_kit.streams import EVENTS
from tunesmith_metrics import traces
from tunesmith_metrics.retention import forgotten
from tunesmith_metrics.tables import REVISION, RUNS

log = logging.getLogger(__name__)

HEARD = ("created", "updated", "state_changed", "deleted")
_STATES = state_pb2.DESCRIPTOR.enum_types_by_name["JobState"]
_BATCH = 200
_OWN_COLUMNS = ("experiment", "labels")  # of the spec; what else it says is configuration
Event = tuple[str, str, events_pb2.JobEvent]


class JobEvents:
    """Hears events of jobs. `forget` deletes what is stored of a job; `gone` hears of it after the commit."""

    def __init__(
        self, db: Database, forget: Callable[[Session, str], object], gone: Callable[[str], None]
    ) -> None:
        self._db, self._forget, self._gone = db, forget, gone

    async def start(self, bus: Bus) -> Consumer:
        """Begins to hear."""
        filters = subjects.any_event("job", *HEARD)
        return await bus.consume_batches(
            EVENTS, "metrics-runs", self._hear, filter_subjects=filters, batch=_BATCH
        )

    async def _hear(self, items: Sequence[Delivery]) -> Rejected:
        good: list[Event] = []
        refused: dict[int, InvalidArgument] = {}
        for index, item in enumerate(items):
            try:
                good.append(_read(item))
            except InvalidArgument as error:
                refused[index] = error
        if good:
            deleted = await self._db.write(lambda session: self._apply(session, good))
            for job_id in deleted:
                self._gone(job_id)
        return refused

    def _apply(self, session: Session, events: Sequence[Event]) -> list[str]:
        revision = next_revision(session, REVISION)
        deleted = []
        for project, job_id, event in events:
            if event.WhichOneof("event") == "deleted":
                self._forget(session, job_id)
                deleted.append(job_id)
                log.info("metrics and logs deleted", extra={"job": event.job})
            else:
                _note(session, project, job_id, event, revision)
        return deleted


def _read(item: Delivery) -> Event:
    try:
        event = events_pb2.JobEvent.FromString(item.payload)
    except DecodeError as error:
        raise InvalidArgument("MESSAGE_MALFORMED", "not a JobEvent", field=item.subject) from error
    project, job_id = names.parse("projects/*/jobs/*", event.job, "job")
    if len(project) > 64 or len(job_id) > 64:
        raise InvalidArgument("MESSAGE_MALFORMED", "project or job id is too long", field=item.subject)
    return project, job_id, event


def _note(session: Session, project: str, job_id: str, event: events_pb2.JobEvent, revision: int) -> None:
    query = select(RUNS.c.job_revision).where(RUNS.c.job_id == job_id)
    known = session.execute(query).scalar_one_or_none()
    if known is not None and event.revision < known:
        return  # delivered again; one change of a job may say several things under one revision
    if known is None and forgotten(session, [job_id]):
        return  # it came later than the event of its deletion
    row: dict[str, Any] = {
        "project": project,  # the jobs service knows best, whoever sent metrics first
        "job_revision": event.revision,
        "revision": revision,
        **({"display_name": event.display_name[:256]} if event.display_name else {}),
        **_said(event),
    }
    if known is None:
        session.execute(insert(RUNS).values(job_id=job_id, **row))
    else:
        session.execute(update(RUNS).where(RUNS.c.job_id == job_id).values(row))
    traces.learn(session, job_id, event.traceparent)


def _said(event: events_pb2.JobEvent) -> dict[str, Any]:
    """What an event says of the columns of a run."""
    kind = event.WhichOneof("event")
    if kind == "created":
        return _of_spec(event.created.spec) | {
            "state": "VALIDATING",
            "create_time_us": event.time.ToMicroseconds(),
        }
    if kind == "updated":
        return _of_spec(event.updated.spec)
    if kind == "state_changed":
        return {"state": words.short(_STATES, event.state_changed.to_state)}
    return {}


def _of_spec(spec: spec_pb2.JobSpec) -> dict[str, Any]:
    config = {path: text for path, text in flatten(spec) if path.split(".")[0] not in _OWN_COLUMNS}
    external = spec.HasField("external")
    if external:  # its configuration is all there is: `lr`, not `external.config.lr`
        config = {path.removeprefix("external.config."): text for path, text in config.items()}
    return {
        "external": external,
        "experiment": spec.experiment[:64],
        "labels": json.dumps(dict(spec.labels), ensure_ascii=False),
        "config": json.dumps(config, ensure_ascii=False),
    }


def flatten(message: Message, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the fields of a message with their paths (`training.learning_rate`) and their values as a job
    file has them. What is absent or an empty text is left out; numbers that are 0 are not."""
    for field in message.DESCRIPTOR.fields:
        path, value = prefix + field.name, getattr(message, field.name)
        if field.is_repeated:
            yield from _many(field, path, value)
        elif field.message_type is not None:
            if not message.HasField(field.name):
                continue
            if field.message_type.full_name.startswith("google.protobuf."):
                yield path, str(MessageToDict(value))
            else:
                yield from flatten(value, f"{path}.")
        elif not field.has_presence or message.HasField(field.name):
            text = _text(field, value)
            if text:
                yield path, text


def _many(field: Any, path: str, value: Any) -> Iterator[tuple[str, str]]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield from ((f"{path}.{key}", str(value[key])) for key in sorted(value))
    elif value and field.message_type is None:
        yield path, json.dumps(list(value), ensure_ascii=False)


def _text(field: Any, value: Any) -> str:
    if field.enum_type is not None:
        return words.short(field.enum_type, value).lower() if value else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.17g}" if float(f"{value:.15g}") != value else f"{value:.15g}"
    return str(value)
