"""What the engine holds in memory: rules, the jobs and nodes they look at, and how far it has read."""

from collections.abc import Iterable, Sequence, Set
from typing import Any

from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_kit.clock import Clock
from tunesmith_kit.subjects import FLEET
from tunesmith_metrics import segments
from tunesmith_metrics.alerts import history, reading, samples, store
from tunesmith_metrics.alerts.machine import Facts, Found, Rule, Subject, subject_of
from tunesmith_metrics.alerts.reading import LOGS, METRICS, Heard, Part
from tunesmith_metrics.alerts.samples import Lines, Records, Sample
from tunesmith_metrics.alerts.store import Cursor
from tunesmith_metrics.alerts.waiting import Waiting

KINDS: dict[str, type] = {METRICS: Records, LOGS: Lines}
# Agents flush within a second; what is later than this may come after a rule took it for missing.
_SETTLE_SECONDS = 3.0
_TICK_SECONDS = 0.5
_LATEST = 50  # parts of a page that are asked for the newest time


class Bench:
    """Rules and subjects. Whatever was judged is in `news` until it is saved."""

    def __init__(self, rules: Sequence[Rule], clock: Clock, cursor: Cursor) -> None:
        self.rules = {rule.uid: rule for rule in rules}
        self.news: dict[str, tuple[str, Found]] = {}
        self.deleted: set[str] = set()
        self.history_revision = cursor.history_revision
        self._revision = cursor.revision
        self._clock = clock
        self._subjects: dict[str, Subject] = {}
        self._waiting = Waiting(clock.monotonic)
        self._wanted = _wanted(rules)
        self._fact_seekers = {rule.project for rule in rules if rule.needs_facts and not rule.about_nodes}
        self._ticked = self._fed = clock.monotonic()
        self._data_us = 0

    def load(self, session: Session) -> None:
        """Reads what was kept of all jobs and nodes that have not ended."""
        self._restore(store.subjects(session))

    def _restore(self, kept: dict[str, dict[str, Any]]) -> None:
        for name, body in kept.items():
            subject = subject_of(name, body, self.rules, self.news)
            self._subjects[name] = subject
            self._choose(subject)

    def _choose(self, subject: Subject) -> None:
        subject.choose(self.rules.values(), self.news, self._now_us())

    def take(self, session: Session) -> bool:
        """Judges the next page of what was stored, and the time that passed; tells whether there is more."""
        page = reading.page(session, self._revision, self.history_revision, self._wanted)
        self._fetch(session, page.items)
        self._data_us = 0
        for index, item in enumerate(page.items):
            if isinstance(item, Heard):
                self._hear(item)
            else:
                self._offer(session, item, len(page.items) - index <= _LATEST)
        self._revision = max(self._revision, page.revision)
        self.history_revision = max(self.history_revision, page.revision)
        self._give_up_waiting()
        if not page.more:
            self._tick(bool(page.items))
        return page.more

    def _fetch(self, session: Session, items: Iterable[Part | Heard]) -> None:
        """Brings in the jobs and nodes that have something to be judged and are not here."""
        lacking = {item.subject: item for item in items if item.subject not in self._subjects}
        if not lacking:
            return
        self._restore(store.subjects(session, lacking))
        for name, item in lacking.items():
            if name not in self._subjects:
                self._subjects[name] = subject = Subject(name, _unknown(item))
                self._choose(subject)

    def _hear(self, heard: Heard) -> None:
        subject = self._subjects[heard.subject]
        subject.dirty = True
        if heard.kind == "deleted":
            subject.choose((), self.news, heard.time_us)
            self.deleted.add(heard.subject)
            return
        change = history.take(heard, subject.facts)
        self._choose(subject)
        for mark, first in self._waiting.all_of(subject.name):
            if not self._blocked(subject):
                subject.marks.setdefault(mark, first)
                self._drain(subject, mark, False)
        if change is not None:
            subject.take(change, heard.revision)

    def _offer(self, session: Session, part: Part, late: bool) -> None:
        subject = self._subjects[part.subject]
        blocked = self._blocked(subject)
        if not blocked and KINDS[part.kind] not in subject.wants:
            return
        mark = part.mark
        expected = subject.marks.get(mark)
        if expected == part.first and not blocked and not self._waiting:
            self._feed(subject, part, late)
            return
        if expected is None and not self._waiting.holds(subject.name, mark):
            low = 1 if part.kind == METRICS else 0
            expected = low if part.first <= low else reading.begins_at(session, part, self._revision)
            subject.marks[mark] = expected
        if blocked or self._waiting.holds(subject.name, mark):
            self._waiting.add(part)
            if not blocked:
                self._drain(subject, mark, late)
        elif expected is not None and part.first > expected:
            self._waiting.add(part)
        else:
            self._feed(subject, part, late)

    def _blocked(self, subject: Subject) -> bool:
        """Whether it is not known yet which rules look at a job."""
        facts = subject.facts
        return not facts.known and not facts.is_node and facts.project in self._fact_seekers

    def _drain(self, subject: Subject, mark: str, late: bool) -> None:
        for part in self._waiting.ready(subject.name, mark, subject.marks.get(mark, 0)):
            self._feed(subject, part, late)

    def _give_up_waiting(self) -> None:
        for name, mark, first in self._waiting.overdue() if self._waiting else ():
            subject = self._subjects[name]
            subject.marks[mark] = max(first, subject.marks.get(mark, 0))
            self._drain(subject, mark, False)

    def _feed(self, subject: Subject, part: Part, late: bool) -> None:
        begin = subject.marks.get(part.mark, part.first)
        if part.end <= begin:
            return
        subject.marks[part.mark] = part.end
        for sample in unpack(part, begin):
            subject.take(sample, part.revision)
            if late:
                self._data_us = max(self._data_us, newest(sample))

    def _tick(self, fed: bool) -> None:
        """Lets time pass up to what the newest data tells; without data, up to now."""
        now = self._clock.monotonic()
        if fed:
            self._fed = now
        if now - self._ticked < _TICK_SECONDS:
            return
        until_us = self._now_us()
        if self._data_us:
            until_us = min(until_us, self._data_us)
        elif now - self._fed < _SETTLE_SECONDS:
            return
        self._ticked = now
        for subject in self._subjects.values():
            subject.advance(until_us - int(_SETTLE_SECONDS * 1e6))

    def names(self) -> dict[str, str]:
        """Readable names of jobs and nodes."""
        return {name: subject.facts.display_name for name, subject in self._subjects.items()}

    def changed(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """What must be kept of the jobs and nodes that something happened to."""
        found = {}
        for name, subject in self._subjects.items():
            if subject.dirty and name not in self.deleted:
                found[name] = (-1 if subject.stands else subject.facts.ended_us, subject.dump())
        return found

    def safe_revision(self) -> int:
        """Up to which revision nothing is read again after what is here was saved."""
        oldest = self._waiting.revision()
        return self._revision if oldest is None else min(self._revision, oldest - 1)

    def saved(self) -> None:
        """All that was found is written down; jobs that ended are let go."""
        self.news.clear()
        gone = [n for n, s in self._subjects.items() if s.facts.ended_us >= 0 and not s.stands]
        for name in {*gone, *self.deleted}:
            if not self._waiting.all_of(name):
                self._subjects.pop(name, None)
        self.deleted.clear()
        for subject in self._subjects.values():
            subject.dirty = False

    def _now_us(self) -> int:
        return int(self._clock.now().timestamp() * 1_000_000)


def unpack(part: Part, begin: int) -> Iterable[Sample]:
    """The samples of a part from a sequence number or byte on."""
    if part.kind == LOGS:
        yield samples.lines(events_pb2.LogChunk.FromString(part.payload), begin)
        return
    for batch in segments.batches(part.payload):
        yield from samples.records(batch, begin)


def newest(sample: Sample) -> int:
    """Time of the newest of what a sample holds."""
    return sample.times_us[-1] if isinstance(sample, Records) else sample.time_us


def _unknown(item: Part | Heard) -> Facts:
    if item.subject.startswith("nodes/"):
        return Facts(FLEET, is_node=True)
    return Facts(item.subject.split("/")[1])


def _wanted(rules: Sequence[Rule]) -> dict[str, Set[str]]:
    """Of which projects each kind of parts is of interest."""
    return {
        kind: {FLEET if rule.about_nodes else rule.project for rule in rules if sample in rule.wants}
        for kind, sample in KINDS.items()
    }
