"""The rows of traces: spans stored once, bounded for each job, found again below the request that made it."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Table, delete, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import Insert

from tunesmith.api.metrics.v1 import trace_pb2
from tunesmith_metrics.rows import remove
from tunesmith_metrics.tables import FORGOTTEN, JOB_TRACES, SPANS

MOST_SPANS = 2000  # of a job: a month's checkpoints must not fill the store
_ROOM = 100  # made at once, so that the rows are not looked through for every batch
_MOST_NAMES = 100  # whose first span is kept; there are some twenty
_AT_ONCE = 500
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Found:
    """A span that was heard, and the id of the job it is for; empty: it is not known."""

    span: trace_pb2.TraceSpan
    job_id: str


def learn(session: Session, job_id: str, traceparent: str) -> None:
    """Notes the trace of a job; what is known stays. A text that is no traceparent says nothing."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is not None:
        row = {"job_id": job_id, "trace_id": match[1], "span_id": match[2], "num_left_out": 0}
        session.execute(_inserting(session, JOB_TRACES), [row])


def store(session: Session, found: Sequence[Found], now_us: int) -> None:
    """Stores spans that are not there yet; those of deleted jobs are left out."""
    ids = {each.job_id for each in found if each.job_id}
    gone = set(session.execute(select(FORGOTTEN.c.job).where(FORGOTTEN.c.job.in_(ids))).scalars())
    # In one order everywhere, so that two replicas that store the same cannot wait for each other.
    rows = [
        {
            "trace_id": each.span.trace_id,
            "span_id": each.span.span_id,
            "job_id": each.job_id,
            "name": each.span.name,
            "start_ns": each.span.start_time.ToNanoseconds(),
            "stored_us": now_us,
            "payload": each.span.SerializeToString(),
        }
        for each in sorted(found, key=lambda each: (each.span.trace_id, each.span.span_id))
        if each.job_id not in gone
    ]
    if rows:
        session.execute(_inserting(session, SPANS), rows)
    trace_ids = sorted({str(row["trace_id"]) for row in rows})
    for start in range(0, len(trace_ids), _AT_ONCE):
        _trim_all(session, trace_ids[start : start + _AT_ONCE])


def _inserting(session: Session, table: Table) -> Insert:
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement: Insert = dialect.insert(table).on_conflict_do_nothing()
    return statement


def _trim_all(session: Session, trace_ids: Sequence[str]) -> None:
    """Makes room where a job of these traces has too many."""
    of = SPANS.c
    counted = select(of.trace_id, of.job_id, func.count()).where(of.trace_id.in_(trace_ids))
    full = counted.group_by(of.trace_id, of.job_id).having(func.count() > MOST_SPANS)
    for trace_id, job_id, count in session.execute(full).all():
        _trim(session, trace_id, job_id, count)


def _trim(session: Session, trace_id: str, job_id: str, count: int) -> None:
    """Makes room in a job's spans: the first of each name and the newest stay."""
    of = SPANS.c
    mine = (of.trace_id == trace_id, of.job_id == job_id)
    firsts: dict[str, str] = {}
    others: list[str] = []
    ordered = select(of.span_id, of.name).where(*mine).order_by(of.start_ns, of.span_id)
    for span_id, name in session.execute(ordered):
        if name not in firsts and len(firsts) < _MOST_NAMES:
            firsts[name] = span_id
        else:
            others.append(span_id)
    surplus = others[: count - MOST_SPANS + _ROOM]
    for start in range(0, len(surplus), _AT_ONCE):
        some = surplus[start : start + _AT_ONCE]
        session.execute(delete(SPANS).where(of.trace_id == trace_id, of.span_id.in_(some)))
    jobs = JOB_TRACES.c
    told = jobs.job_id == job_id if job_id else jobs.trace_id == trace_id
    more = jobs.num_left_out + len(surplus)
    session.execute(update(JOB_TRACES).where(told).values(num_left_out=more))


def trace(session: Session, job_id: str) -> trace_pb2.GetTraceResponse:
    """The trace of a job, spans by their beginning."""
    of = JOB_TRACES.c
    known = session.execute(select(JOB_TRACES).where(of.job_id == job_id)).first()
    if known is None:
        return trace_pb2.GetTraceResponse()
    row = SPANS.c
    rows = session.execute(
        select(row.job_id, row.payload)
        .where(row.trace_id == known.trace_id, row.job_id.in_(("", job_id)))
        .order_by(row.start_ns, row.span_id)
    ).all()
    spans = [(each.job_id, trace_pb2.TraceSpan.FromString(each.payload)) for each in rows]
    parents = {span.span_id: span.parent_span_id for _, span in spans}
    near = _above(parents, known.span_id) | _below(parents, known.span_id)
    return trace_pb2.GetTraceResponse(
        trace_id=known.trace_id,
        # In one trace a program may make many jobs: what names no job is this one's if it hangs together.
        spans=[span for named, span in spans if named or span.span_id in near],
        num_left_out=known.num_left_out,
    )


def _above(parents: Mapping[str, str], span_id: str) -> set[str]:
    """A span and those it is part of."""
    found: set[str] = set()
    while span_id and span_id not in found:
        found.add(span_id)
        span_id = parents.get(span_id, "")
    return found


def _below(parents: Mapping[str, str], span_id: str) -> set[str]:
    """A span and its parts, and theirs."""
    children: dict[str, list[str]] = defaultdict(list)
    for child, parent in parents.items():
        children[parent].append(child)
    found, rest = set[str](), [span_id]
    while rest:
        at = rest.pop()
        if at not in found:
            found.add(at)
            rest += children[at]
    return found


def traces_of(session: Session, job_id: str) -> Collection[str]:
    """Ids of the traces a job is part of."""
    return session.execute(select(JOB_TRACES.c.trace_id).where(JOB_TRACES.c.job_id == job_id)).scalars().all()


def drop(session: Session, trace_ids: Collection[str]) -> int:
    """Deletes the spans of traces that no job has any more; returns how many."""
    return remove(session, delete(SPANS).where(SPANS.c.trace_id.in_(trace_ids), ~_has_job()))


def expire(session: Session, before_us: int) -> int:
    """Deletes spans stored before a time whose trace no job has: those of other requests."""
    return remove(session, delete(SPANS).where(SPANS.c.stored_us < before_us, ~_has_job()))


def _has_job() -> ColumnElement[bool]:
    return exists().where(JOB_TRACES.c.trace_id == SPANS.c.trace_id)
