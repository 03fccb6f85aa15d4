"""One rule over stored history, with the judges that work live: it finds what it would have found.

What is stored of a job is brought into the order of its time and given to the rule's judge. Where an attempt
ran steps again, each step is judged once, as it is live.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2, rules_pb2
from tunesmith.errors import ResourceExhausted
from tunesmith_kit.db import Database
from tunesmith_kit.subjects import FLEET
from tunesmith_metrics import chunks, segments
from tunesmith_metrics.alerts import history, samples
from tunesmith_metrics.alerts.conditions import NoProgress
from tunesmith_metrics.alerts.ledger import alert_of
from tunesmith_metrics.alerts.machine import Facts, Found, Rule, Subject, rule_of
from tunesmith_metrics.alerts.reading import Heard, subject_name
from tunesmith_metrics.alerts.samples import Lines, Records, Sample
from tunesmith_metrics.alerts.tables import HISTORY
from tunesmith_metrics.series import Points
from tunesmith_metrics.tables import CHUNKS, LOG_CHUNKS, RUNS, SEGMENTS

_MOST_SAMPLES = 20_000_000
_MOST_ALERTS = 1000


@dataclass
class Replay:
    """What a rule found, and how much it looked at."""

    found: list[tuple[str, str, Found]] = field(default_factory=list)  # subject, its readable name, alert
    num_subjects: int = 0
    num_samples: int = 0

    def alerts(self, rule: Rule) -> list[rules_pb2.Alert]:
        """The alerts, oldest first."""
        self.found.sort(key=lambda entry: (entry[2].pending_us, entry[0]))
        return [
            alert_of(rule, subject, shown, found, 0) for subject, shown, found in self.found[:_MOST_ALERTS]
        ]


async def run(
    db: Database, body: rules_pb2.AlertRule, project: str, start_us: int, end_us: int
) -> tuple[Rule, Replay]:
    """Runs a checked rule over what was stored in `[start_us, end_us)`.

    Raises:
        ResourceExhausted: it would have to look at more than a call may take.
    """
    rule = rule_of("test", project, body.name.rpartition("/")[2] or "test", body, 0, start_us)
    answer = Replay()
    for name, job_id in await db.read(lambda session: _subjects(session, rule)):
        one = _One(rule, name, job_id, start_us, end_us)
        await db.read(one.run)
        answer.num_samples += one.num_samples
        answer.num_subjects += one.selected
        shown = one.subject.facts.display_name
        answer.found += [(name, shown, found) for _, found in one.news.values()]
        if answer.num_samples > _MOST_SAMPLES:
            raise ResourceExhausted(
                "TEST_TOO_LARGE",
                f"the rule would look at more than {_MOST_SAMPLES} points and lines",
                field="start_time",
                remedy="give a start_time, or choose fewer jobs in the rule's selector",
            )
    return rule, answer


def _subjects(session: Session, rule: Rule) -> list[tuple[str, str]]:
    """Jobs of the project, or nodes: names and ids in the store."""
    project = FLEET if rule.about_nodes else rule.project
    stored = session.execute(select(RUNS.c.job_id).where(RUNS.c.project == project)).scalars()
    found = {subject_name(project, job_id): job_id for job_id in stored}
    prefix = "nodes/" if rule.about_nodes else f"projects/{project}/jobs/"
    heard = select(HISTORY.c.subject).where(HISTORY.c.subject.startswith(prefix, autoescape=True)).distinct()
    for name in session.execute(heard).scalars():
        ident = name.removeprefix(prefix)
        found.setdefault(name, f"node.{ident}" if rule.about_nodes else ident)
    chosen = set(rule.body.selector.nodes if rule.about_nodes else rule.body.selector.jobs)
    return sorted((name, ident) for name, ident in found.items() if not chosen or name in chosen)


class _One:
    """A rule over one job or node."""

    def __init__(self, rule: Rule, name: str, job_id: str, start_us: int, end_us: int) -> None:
        self.rule, self.job_id = rule, job_id
        self.start_us, self.end_us = start_us, end_us
        self.news: dict[str, tuple[str, Found]] = {}
        self.num_samples, self.selected = 0, False
        self.subject = Subject(name, Facts(FLEET if rule.about_nodes else rule.project, rule.about_nodes))

    def run(self, session: Session) -> None:
        """Reads and judges."""
        heard = [event for event in _heard(session, self.subject.name) if event.time_us < self.end_us]
        for event in heard:
            if event.time_us < self.start_us:
                self._hear(event, 0)
        self._choose()
        items: list[tuple[int, Heard | Sample]] = [
            (e.time_us, e) for e in heard if e.time_us >= self.start_us
        ]
        items += [(_time(sample), sample) for sample in self._samples(session)]
        items.sort(key=lambda item: item[0])
        for _, item in items:
            if isinstance(item, Heard):
                self.num_samples += 1
                self._hear(item, 1)
            else:
                self.num_samples += len(item) if isinstance(item, Records | Lines) else 1
                self.subject.take(item, 1)
        self.subject.advance(self.end_us)

    def _choose(self) -> None:
        self.subject.choose([self.rule], self.news, self.end_us)
        self.selected = self.selected or bool(self.subject.watches)

    def _hear(self, event: Heard, revision: int) -> None:
        if event.kind == "deleted":
            self.subject.choose((), self.news, event.time_us)
            return
        change = history.take(event, self.subject.facts)
        if revision:
            self._choose()
        if change is not None:
            self.subject.take(change, revision)

    def _samples(self, session: Session) -> Iterator[Sample]:
        if Lines in self.rule.wants:
            of = LOG_CHUNKS.c
            query = select(of.payload).where(
                of.job_id == self.job_id, of.time_us >= self.start_us, of.time_us < self.end_us
            )
            order = (of.epoch, of.time_us, of.rank, of.offset)
            for payload in session.execute(query.order_by(*order)).scalars():
                yield samples.lines(events_pb2.LogChunk.FromString(payload))
        if Records in self.rule.wants:
            yield from self._records(session)

    def _records(self, session: Session) -> Iterator[Records]:
        condition = self.rule.body.condition
        said = getattr(condition, str(condition.WhichOneof("condition")))
        key = getattr(said, "key", "")
        exact = key if key and not any(mark in key for mark in "*?[") else ""
        pooled = isinstance(self.rule.make(), NoProgress)
        by_rank: dict[tuple[int, int], list[tuple[str, Points]]] = {}
        for epoch, rank, name, points in _stored(session, self.job_id, exact):
            inside = (points.times_us >= self.start_us) & (points.times_us < self.end_us)
            by_rank.setdefault((epoch, rank), []).append((name, _part(points, inside)))
        for (epoch, rank), columns in sorted(by_rank.items()):
            if pooled:
                columns = [("", points) for _, points in columns]
            if len({name for name, _ in columns}) == 1:
                yield from _column(epoch, rank, columns)
            else:
                yield from _rows(epoch, rank, columns)


def _heard(session: Session, subject: str) -> list[Heard]:
    of = HISTORY.c
    query = select(HISTORY).where(of.subject == subject).order_by(of.revision)
    return [Heard(r.revision, r.subject, r.time_us, r.kind, r.payload) for r in session.execute(query)]


def _time(sample: Sample) -> int:
    return sample.times_us[0] if isinstance(sample, Records) else sample.time_us


def _stored(session: Session, job_id: str, key: str) -> Iterator[tuple[int, int, str, Points]]:
    """Points of a job, of one key or all, in no order: epoch, rank, key, points."""
    of = CHUNKS.c
    query = select(of.epoch, of.rank, of.key, of.payload).where(of.job_id == job_id)
    for epoch, rank, name, payload in session.execute(query.where(of.key == key) if key else query):
        yield epoch, rank, name, chunks.decode(payload)
    rows = select(SEGMENTS.c.epoch, SEGMENTS.c.rank, SEGMENTS.c.payload).where(SEGMENTS.c.job_id == job_id)
    for epoch, rank, payload in session.execute(rows):
        for name, points in segments.columns([payload], {key} if key else None):
            yield epoch, rank, name, points


def _part(points: Points, which: "np.typing.NDArray[np.bool_] | np.typing.NDArray[np.intp]") -> Points:
    return replace(
        points,
        steps=points.steps[which],
        times_us=points.times_us[which],
        values=points.values[which],
        seqs=points.seqs[which],
    )


def _column(epoch: int, rank: int, columns: Sequence[tuple[str, Points]]) -> Iterator[Records]:
    """All points of one key of a rank, in the order of their records."""
    name, all_points = columns[0][0], [points for _, points in columns]
    joined = Points(
        *(
            np.concatenate([getattr(points, part) for points in all_points])
            for part in ("steps", "times_us", "values", "seqs")
        )
    )
    joined = _part(joined, np.argsort(joined.seqs, kind="stable"))
    if len(joined.steps):
        steps, times = joined.steps.tolist(), joined.times_us.tolist()
        yield Records(epoch, rank, (name,), joined.values.tolist(), steps, times, 0, steps, None, times)


def _rows(epoch: int, rank: int, columns: Iterable[tuple[str, Points]]) -> Iterator[Records]:
    """The records of a rank, one by one."""
    rows: dict[int, tuple[int, int, list[str], list[float]]] = {}
    for name, points in columns:
        lists = (
            points.seqs.tolist(),
            points.steps.tolist(),
            points.times_us.tolist(),
            points.values.tolist(),
        )
        for seq, step, time_us, value in zip(*lists, strict=True):
            row = rows.setdefault(seq, (step, time_us, [], []))
            row[2].append(name)
            row[3].append(value)
    for _, (step, time_us, names, values) in sorted(rows.items()):
        yield Records(epoch, rank, tuple(names), values, [step], [time_us], 0, [step], None, [time_us])
