"""Conditions about what happens: steps, states, lines; and what makes the judge of a rule's condition."""

from collections.abc import Callable
from typing import Any

import re2

from tunesmith.api.metrics.v1 import rules_pb2
from tunesmith_metrics.alerts.judge import Case, Finding, Judge
from tunesmith_metrics.alerts.samples import Change, Lines, Records
from tunesmith_metrics.alerts.series import Keys, NodeThreshold, NotFinite, Threshold, TrendJudge

_MINUTE_US = 60_000_000
_ENDS_US = 3_600_000_000  # a state that nothing follows is told for an hour


class _Overdue(Judge):
    """Something that should have happened by a time."""

    needs_time = True

    def __init__(self, duration_us: int) -> None:
        self._duration_us = duration_us
        self._since_us = -1  # -1: nothing is awaited
        self._held = False

    def advance(self, case: Case, now_us: int) -> None:
        due = self._since_us + self._duration_us
        if self._since_us >= 0 and not self._held and due <= now_us:
            self._held = True
            case.holds(due, self._late())

    def _restart(self, case: Case, time_us: int, awaited: bool) -> None:
        self.advance(case, time_us)
        if self._held:
            self._held = False
            case.clears(time_us)
        self._since_us = time_us if awaited else -1

    def _late(self) -> Finding:
        raise AssertionError("each condition says it")

    def reset(self) -> None:
        self._since_us, self._held = -1, False

    def dump(self) -> list[Any]:
        return [self._since_us, self._held]

    def load(self, kept: list[Any]) -> None:
        self._since_us, self._held = kept[:2]


class NoProgress(_Overdue):
    """A running job without a new step."""

    wants = frozenset((Records, Change))

    def __init__(self, duration_us: int) -> None:
        super().__init__(duration_us)
        self._step, self._step_us = -1, -1

    def begin(self, time_us: int, state: str, state_us: int) -> None:
        if state == "RUNNING":
            self._since_us = max(time_us, state_us)

    def take(self, case: Case, sample: Records | Change) -> None:
        if isinstance(sample, Change):
            self._restart(case, sample.time_us, sample.state == "RUNNING")
            if self._since_us >= 0:  # a step may be heard before the state in which it was made
                self._since_us = max(self._since_us, self._step_us)
            return
        if sample.last_step <= self._step:
            return
        for step, time_us in zip(sample.steps, sample.times_us, strict=True):
            if step > self._step:
                if self._since_us >= 0:
                    self._restart(case, max(time_us, self._since_us), True)
                self._step, self._step_us = step, max(time_us, self._step_us)

    def _late(self) -> Finding:
        at = f"after step {self._step}" if self._step >= 0 else "since it runs"
        return Finding(f"no new step {at} for {_span(self._duration_us)}", None, max(self._step, 0))

    def dump(self) -> list[Any]:
        return [*super().dump(), self._step, self._step_us]

    def load(self, kept: list[Any]) -> None:
        super().load(kept)
        self._step, self._step_us = kept[2:]


class QueueWait(_Overdue):
    """A job that waits in the queue."""

    wants = frozenset((Change,))

    def begin(self, time_us: int, state: str, state_us: int) -> None:
        if state == "QUEUED":
            self._since_us = state_us

    def take(self, case: Case, sample: Change) -> None:
        self._restart(case, sample.time_us, sample.state == "QUEUED")

    def _late(self) -> Finding:
        return Finding(f"it has waited in the queue for {_span(self._duration_us)}")


class StateIs(Judge):
    """A job or node in one of some states; one that never ends is told for an hour."""

    wants = frozenset((Change,))
    needs_time = True
    outlives = True

    def __init__(self, states: frozenset[str], hold_us: int) -> None:
        self._states, self._ends_us = states, _ENDS_US + hold_us
        self._until_us = -1

    def take(self, case: Case, sample: Change) -> None:
        self.advance(case, sample.time_us)
        if sample.state in self._states:
            self._until_us = sample.time_us + self._ends_us if sample.terminal else -1
            case.holds(sample.time_us, Finding(f"it is {sample.state}"))
        else:
            self._until_us = -1
            case.clears(sample.time_us)

    def advance(self, case: Case, now_us: int) -> None:
        if 0 <= self._until_us <= now_us:
            case.clears(self._until_us)
            self._until_us = -1

    def dump(self) -> list[Any]:
        return [self._until_us]

    def load(self, kept: list[Any]) -> None:
        self._until_us = kept[0]


class NodeStateIs(StateIs):
    """A node in one of some states."""

    about_nodes = True


class LogMatches(Judge):
    """So many log lines within a window that fit a pattern and a weight."""

    wants = frozenset((Lines,))
    needs_time = True

    def __init__(self, pattern: Any, min_level: int, count: int, window_us: int) -> None:
        self._pattern, self._min_level = pattern, min_level
        self._count, self._window_us = max(count, 1), window_us
        self._seen: list[list[int]] = []  # [time, lines] of the newest lines that together make the count
        self._total = 0
        self._until_us = -1

    def take(self, case: Case, sample: Lines) -> None:
        for level, text in sample.lines:
            if level >= self._min_level and self._pattern.search(text):
                self._match(case, sample.time_us, text)

    def _match(self, case: Case, time_us: int, text: str) -> None:
        if self._seen:  # ranks are read one after the other: time never runs back
            time_us = max(time_us, self._seen[-1][0])
        self.advance(case, time_us)
        if self._seen and self._seen[-1][0] == time_us:
            self._seen[-1][1] += 1
        else:
            self._seen.append([time_us, 1])
        self._total += 1
        while self._total - self._seen[0][1] >= self._count:
            self._total -= self._seen.pop(0)[1]
        until = self._seen[0][0] + self._window_us
        if self._total >= self._count and time_us < until:
            self._until_us = max(self._until_us, until)
            times = "" if self._count == 1 else f"{self._count} lines in {_span(self._window_us)}, the last: "
            case.holds(time_us, Finding(f"log: {times}{text[:200]}"))

    def advance(self, case: Case, now_us: int) -> None:
        if 0 <= self._until_us <= now_us:
            case.clears(self._until_us)
            self._until_us = -1

    def reset(self) -> None:
        self._seen, self._total, self._until_us = [], 0, -1

    def dump(self) -> list[Any]:
        return [self._seen, self._total, self._until_us]

    def load(self, kept: list[Any]) -> None:
        self._seen, self._total, self._until_us = kept


def compile_pattern(pattern: str) -> Any:
    """A regular expression in RE2's syntax; raises `re2.error`."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def maker(condition: rules_pb2.AlertCondition, hold_us: int) -> Callable[[], Judge]:
    """Returns what makes judges of a checked condition; they share what need not be kept apart."""
    kind = condition.WhichOneof("condition")
    said: Any = getattr(condition, str(kind))
    if kind in ("threshold", "node_threshold"):
        keys = Keys(said.key)
        judge = Threshold if kind == "threshold" else NodeThreshold
        points, step = (said.num_points, said.min_step) if kind == "threshold" else (1, 0)
        return lambda: judge(keys, said.comparison, said.value, points, step)
    if kind == "trend":
        return lambda: TrendJudge(said.key, said.num_points, said.trend, said.change)
    if kind == "not_finite":
        any_key = Keys(said.key)
        return lambda: NotFinite(any_key)
    if kind in ("no_progress", "queue_wait"):
        duration = said.duration.ToMicroseconds()
        return lambda: NoProgress(duration) if kind == "no_progress" else QueueWait(duration)
    states = frozenset(said.states) if kind != "log_matches" else frozenset()
    if kind == "job_state":
        return lambda: StateIs(states, hold_us)
    if kind == "node_state":
        return lambda: NodeStateIs(states, hold_us)
    assert kind == "log_matches", f"condition {kind} has no judge"
    pattern = compile_pattern(said.pattern)
    window = said.window.ToMicroseconds() or _MINUTE_US
    return lambda: LogMatches(pattern, said.min_level, said.count, window)


def _span(time_us: int) -> str:
    seconds = time_us / 1e6
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
