"""Pending, firing, resolved: one rule over one job or node, and all rules over it."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.api.metrics.v1 import rules_pb2
from tunesmith_metrics.alerts import conditions
from tunesmith_metrics.alerts.judge import Finding, Judge
from tunesmith_metrics.alerts.samples import Change, Lines, Records, Sample


@dataclass(slots=True)
class Found:
    """An alert as the engine has it. Times are Unix microseconds, -1: not yet."""

    id: str
    rule_uid: str
    pending_us: int
    finding: Finding
    firing_us: int = -1
    resolve_us: int = -1

    @property
    def state(self) -> rules_pb2.AlertState.ValueType:
        """Where it stands."""
        if self.resolve_us >= 0:
            return rules_pb2.ALERT_STATE_RESOLVED
        fires = self.firing_us >= 0
        return rules_pb2.ALERT_STATE_FIRING if fires else rules_pb2.ALERT_STATE_PENDING


@dataclass(frozen=True)
class Rule:
    """A rule ready to be evaluated."""

    uid: str
    project: str
    rule_id: str
    since_revision: int
    since_us: int
    body: rules_pb2.AlertRule
    make: Callable[[], Judge]
    hold_us: int
    wants: frozenset[type]
    about_nodes: bool
    needs_time: bool

    def selects(self, subject: str, facts: "Facts") -> bool:
        """Whether it looks at a job or node."""
        chosen = self.body.selector
        if self.about_nodes:
            if not facts.is_node or (chosen.nodes and subject not in chosen.nodes):
                return False
        elif facts.is_node or facts.project != self.project or (chosen.jobs and subject not in chosen.jobs):
            return False
        if chosen.experiment and facts.experiment != chosen.experiment:
            return False
        return all(facts.labels.get(key) == value for key, value in chosen.labels.items())

    @property
    def needs_facts(self) -> bool:
        """Whether it cannot tell what it looks at before a job's first event was heard."""
        return bool(self.body.selector.experiment or self.body.selector.labels)


def rule_of(
    uid: str, project: str, rule_id: str, body: rules_pb2.AlertRule, revision: int, time_us: int
) -> Rule:
    """Makes a checked rule ready; it judges what is stored after a revision."""
    hold_us = body.hold.ToMicroseconds()
    make = conditions.maker(body.condition, hold_us)
    judge = make()
    return Rule(
        uid,
        project,
        rule_id,
        revision,
        time_us,
        body,
        make,
        hold_us,
        judge.wants,
        judge.about_nodes,
        judge.needs_time or hold_us > 0,
    )


@dataclass(slots=True)
class Facts:
    """What is known of a job or node."""

    project: str
    is_node: bool = False
    display_name: str = ""
    experiment: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    state: str = ""
    state_us: int = 0
    ended_us: int = -1
    revision: int = 0  # of the jobs store, as of the last event

    @property
    def known(self) -> bool:
        """Whether an event about it was heard."""
        return self.revision > 0


class Watch:
    """One rule over one job or node; the case its judge speaks to."""

    __slots__ = ("current", "judge", "last_us", "news", "rule", "serial", "subject")

    def __init__(self, rule: Rule, subject: str, news: dict[str, tuple[str, Found]]) -> None:
        self.rule, self.subject, self.news = rule, subject, news
        self.judge = rule.make()
        self.serial, self.last_us = 0, 0
        self.current: Found | None = None

    def advance(self, now_us: int) -> None:
        """Everything before this time was given."""
        self.judge.advance(self, now_us)
        self._ripen(now_us)

    def end(self, time_us: int) -> None:
        """The job ended or the node was lost: conditions about what it does hold no more."""
        if not self.judge.outlives:
            self.judge.advance(self, time_us)
            self.close(time_us)

    def close(self, time_us: int) -> None:
        """The rule looks no more: what stood is resolved."""
        self.judge.reset()
        self.clears(time_us)

    def holds(self, time_us: int, finding: Finding) -> None:
        """The condition holds at this time."""
        time_us = self._move(time_us)
        if self.current is None:
            self.serial += 1
            name = f"{self.rule.uid}:{self.subject}:{self.serial}"
            ident = hashlib.sha256(name.encode()).hexdigest()[:26]
            self.current = Found(ident, self.rule.uid, time_us, finding)
            self._tell(self.current)
        elif self.current.firing_us < 0:
            self.current.finding = finding
        self._ripen(time_us)

    def clears(self, time_us: int) -> None:
        """The condition does not hold at this time."""
        if self.current is not None:
            self.current.resolve_us = self._move(time_us)
            self._tell(self.current)
            self.current = None

    def _move(self, time_us: int) -> int:
        """Time never runs back; what became ripe before is told first."""
        self.last_us = max(self.last_us, time_us)
        self._ripen(self.last_us)
        return self.last_us

    def _ripen(self, now_us: int) -> None:
        found = self.current
        if found is not None and found.firing_us < 0 and found.pending_us + self.rule.hold_us <= now_us:
            found.firing_us = found.pending_us + self.rule.hold_us
            self._tell(found)

    def _tell(self, found: Found) -> None:
        self.news[found.id] = (self.subject, found)

    def dump(self) -> list[Any]:
        """What must be kept to go on, as JSON."""
        found = self.current
        alert = None
        if found is not None:
            finding = [found.finding.text, found.finding.value, found.finding.step]
            alert = [found.id, found.pending_us, found.firing_us, finding]
        return [self.serial, self.last_us, alert, self.judge.dump()]

    def load(self, kept: list[Any]) -> None:
        """Goes on from what `dump` returned."""
        self.serial, self.last_us, alert, judge = kept
        self.judge.load(judge)
        if alert is not None:
            ident, pending_us, firing_us, finding = alert
            self.current = Found(ident, self.rule.uid, pending_us, Finding(*finding), firing_us)


class Subject:
    """A job or node: facts, how far its records were read, and the rules that look at it."""

    __slots__ = ("dirty", "facts", "marks", "name", "wants", "watches")

    def __init__(self, name: str, facts: Facts) -> None:
        self.name, self.facts = name, facts
        self.marks: dict[str, int] = {}  # `met.{epoch}.{rank}` or `log.…` -> next sequence number or byte
        self.watches: dict[str, Watch] = {}
        self.wants: frozenset[type] = frozenset()  # kinds of samples that a rule looks at
        self.dirty = False

    def choose(self, rules: Iterable[Rule], news: dict[str, tuple[str, Found]], now_us: int) -> None:
        """Brings the watches in line with rules and facts; what is no longer looked at is resolved."""
        wanted = {rule.uid: rule for rule in rules if rule.selects(self.name, self.facts)}
        gone = [uid for uid in self.watches if uid not in wanted]
        for uid in gone:
            self.watches.pop(uid).close(now_us)
            self.dirty = True
        if gone:
            self.drop_marks()
        for uid, rule in wanted.items():
            if uid not in self.watches:
                watch = self.watches[uid] = Watch(rule, self.name, news)
                if self.facts.ended_us < 0:
                    watch.judge.begin(rule.since_us, self.facts.state, self.facts.state_us)
                self.dirty = True
        self._look()

    @property
    def stands(self) -> bool:
        """Whether an alert about it is pending or firing."""
        return any(watch.current is not None for watch in self.watches.values())

    def take(self, sample: Sample, revision: int) -> None:
        """Gives a sample, stored at a revision, to all rules that count from before it."""
        self.dirty = True
        if isinstance(sample, Change):
            self._change(sample, revision)
            return
        kind, ended_us = type(sample), self.facts.ended_us
        for watch in self.watches.values():
            rule = watch.rule
            if kind in rule.wants and rule.since_revision < revision:
                watch.judge.take(watch, sample)
                if ended_us >= 0:  # it came after the end: nothing is left standing
                    watch.end(ended_us)

    def drop_marks(self) -> None:
        """Forgets how far records were read that no rule looks at: it would be old when one does again."""
        self._look()
        kinds = {"met": Records, "log": Lines}
        self.marks = {mark: at for mark, at in self.marks.items() if kinds[mark[:3]] in self.wants}

    def _look(self) -> None:
        self.wants = frozenset(kind for watch in self.watches.values() for kind in watch.rule.wants)

    def _change(self, change: Change, revision: int) -> None:
        facts = self.facts
        facts.state, facts.state_us = change.state, change.time_us
        facts.ended_us = change.time_us if change.terminal or change.state == "LOST" else -1
        for watch in self.watches.values():
            if watch.rule.since_revision < revision:
                if Change in watch.rule.wants:
                    watch.judge.take(watch, change)
                if facts.ended_us >= 0:
                    watch.end(facts.ended_us)

    def advance(self, now_us: int) -> None:
        """Tells the rules that wait for time that it passes."""
        for watch in self.watches.values():
            if watch.rule.needs_time:
                before = len(watch.news)
                watch.advance(now_us)
                self.dirty = self.dirty or len(watch.news) != before

    def dump(self) -> dict[str, Any]:
        """What must be kept to go on, as JSON."""
        facts = {name: getattr(self.facts, name) for name in Facts.__slots__}
        rules = {uid: watch.dump() for uid, watch in self.watches.items()}
        return {"facts": facts, "marks": self.marks, "rules": rules}


def subject_of(
    name: str, kept: Mapping[str, Any], rules: Mapping[str, Rule], news: dict[str, tuple[str, Found]]
) -> Subject:
    """Makes a subject from what `dump` returned; rules that are gone are left out."""
    subject = Subject(name, Facts(**kept["facts"]))
    subject.marks = dict(kept["marks"])
    for uid, state in kept["rules"].items():
        if uid in rules:
            watch = subject.watches[uid] = Watch(rules[uid], name, news)
            watch.load(state)
    if len(subject.watches) < len(kept["rules"]):
        subject.drop_marks()
    return subject
