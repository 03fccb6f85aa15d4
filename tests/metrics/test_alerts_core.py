"""The judges of alert rules, given histories whole and in pieces: what they find must be the same."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith.api.metrics.v1 import rules_pb2 as pb
from tunesmith_metrics.alerts.machine import Facts, Found, Subject, rule_of, subject_of
from tunesmith_metrics.alerts.samples import Change, Lines, Records, Sample

SECOND = 1_000_000
JOB = "projects/default/jobs/one"
News = dict[str, tuple[str, Found]]


def rule(hold: float = 0, **condition: Any) -> pb.AlertRule:
    """A rule with one condition."""
    made = pb.AlertRule(condition=pb.AlertCondition(**condition))
    made.hold.FromMicroseconds(int(hold * SECOND))
    return made


def records(step: int, time_us: int, **values: float) -> Records:
    """One record."""
    keys = tuple(key.replace("_", "/") for key in values)
    return Records(1, 0, keys, list(values.values()), [step], [time_us])


class Life:
    """A job with one rule."""

    def __init__(self, body: pb.AlertRule) -> None:
        self.rule = rule_of("uid", "default", "rule", body, 0, 0)
        self.news: News = {}
        self.found: dict[str, tuple[Any, ...]] = {}
        self.subject = Subject(JOB, Facts("default", revision=1))
        self.subject.choose([self.rule], self.news, 0)

    def give(self, *given: Sample) -> None:
        """Gives samples."""
        for sample in given:
            self.subject.take(sample, 1)

    def restart(self) -> None:
        """Writes everything down, as a process does, and goes on from what was written."""
        self.collect()
        kept = json.loads(json.dumps(self.subject.dump()))
        self.news = {}
        self.subject = subject_of(JOB, kept, {"uid": self.rule}, self.news)
        self.subject.choose([self.rule], self.news, 0)

    def collect(self) -> list[tuple[Any, ...]]:
        """What was found so far: pending, firing and resolved in seconds, value, step."""
        for ident, (_, found) in self.news.items():
            times = (found.pending_us, found.firing_us, found.resolve_us)
            # A pending alert goes on to be judged: only then its finding stands.
            finding = (found.finding.text, str(found.finding.value), found.finding.step)
            self.found[ident] = (*(t / SECOND if t >= 0 else None for t in times), *finding)
        return sorted(self.found.values(), key=lambda entry: (entry[0], entry[1:3] == (None, None)))

    def times(self) -> list[tuple[float | None, ...]]:
        """Pending, firing and resolved, in seconds."""
        return [entry[:3] for entry in self.collect()]


def above(value: float, **fields: Any) -> Any:
    return pb.MetricThreshold(key="loss", comparison=pb.COMPARISON_ABOVE, value=value, **fields)


def curve(values: Sequence[float]) -> list[Records]:
    """A point a second, from second 1 on."""
    return [records(i, i * SECOND, loss=value) for i, value in enumerate(values, 1)]


def test_a_threshold_fires_at_the_point_that_breaks_it_and_resolves_at_the_next_good_one() -> None:
    life = Life(rule(threshold=above(2)))
    life.give(*curve([1, 3, 4, 1, 5]))
    assert life.times() == [(2, 2, 4), (5, 5, None)]
    assert "loss is 3, above 2" in life.collect()[0][3]


def test_hold_is_counted_in_the_time_of_the_data() -> None:
    life = Life(rule(hold=2, threshold=above(2)))
    life.give(*curve([3, 1, 3, 3, 3, 3, 1]))
    assert life.times() == [(1, None, 2), (3, 5, 7)]


def test_the_mean_of_points_and_the_first_step_that_counts() -> None:
    life = Life(rule(threshold=above(2, num_points=3, min_step=3)))
    life.give(*curve([9, 9, 1, 1, 9, 1, 1]))
    assert life.times() == [(5, 5, None)]  # 1 1 9 has the mean 3.7, and so have those after it
    life.give(records(8, 8 * SECOND, loss=1))
    assert life.times() == [(5, 5, 8)]


def test_steps_that_come_again_are_judged_once() -> None:
    life = Life(rule(threshold=above(2)))
    life.give(*curve([1, 3, 1]))
    again = [Records(2, 0, ("loss",), [9.0], [step], [(100 + step) * SECOND]) for step in (1, 2, 3)]
    life.give(*again, Records(1, 1, ("loss",), [9.0], [4], [4 * SECOND]))  # a higher rank never counts
    assert life.times() == [(2, 2, 3)]


def test_trends_compare_two_windows() -> None:
    up = pb.MetricTrend(key="loss", num_points=2, trend=pb.TREND_RISING, change=0.5)
    life = Life(rule(trend=up))
    life.give(*curve([1, 1, 1, 2, 2, 2, 2]))
    assert life.times() == [(4, 4, 6)]
    flat = Life(rule(trend=pb.MetricTrend(key="loss", num_points=2, trend=pb.TREND_FLAT, change=0.1)))
    flat.give(*curve([5, 4, 3, 3, 3, 3]))
    assert flat.times() == [(6, 6, None)]


def test_nan_of_any_key_fires_until_that_key_is_a_number_again() -> None:
    life = Life(rule(not_finite=pb.MetricNotFinite()))
    life.give(
        records(1, SECOND, loss=1, norm=float("inf")), records(2, 2 * SECOND, loss=float("nan"), norm=1)
    )
    life.give(records(3, 3 * SECOND, loss=1, norm=1))
    assert life.times() == [(1, 1, 3)]  # from one key to the other it never ceased


def test_no_progress_fires_when_the_step_was_due_not_when_it_was_noticed() -> None:
    body = rule(no_progress=pb.NoProgress())
    body.condition.no_progress.duration.FromSeconds(10)
    life = Life(body)
    life.give(Change(0, "RUNNING"), *curve([1, 1]))
    life.subject.advance(11 * SECOND)
    assert life.times() == []
    life.subject.advance(500 * SECOND)
    assert life.times() == [(12, 12, None)]
    life.give(records(3, 20 * SECOND, loss=1), Change(25 * SECOND, "PAUSING"))
    life.subject.advance(999 * SECOND)
    assert life.times() == [(12, 12, 20)]


def test_a_job_that_waits_and_one_that_failed() -> None:
    body = rule(queue_wait=pb.QueueWait())
    body.condition.queue_wait.duration.FromSeconds(5)
    waits = Life(body)
    waits.give(Change(SECOND, "QUEUED"), Change(9 * SECOND, "STARTING"))
    assert waits.times() == [(6, 6, 9)]
    failed = Life(rule(job_state=pb.JobStateIs(states=["FAILED"])))
    failed.give(Change(SECOND, "RUNNING"), Change(2 * SECOND, "FAILED", terminal=True))
    assert failed.times() == [(2, 2, None)]
    failed.subject.advance(2 * 3600 * SECOND)
    assert failed.times() == [(2, 2, 3602)]  # a state that never ends is told for an hour


def test_what_holds_of_a_job_ends_with_it_in_whatever_order_it_is_heard() -> None:
    end: Sample = Change(3 * SECOND, "FAILED", terminal=True)
    nan: Sample = records(1, SECOND, loss=float("nan"))
    for order in ([nan, end], [end, nan]):
        life = Life(rule(not_finite=pb.MetricNotFinite(key="loss")))
        life.give(*order)
        assert life.times() == [(1, 1, 3)]


def test_log_lines_are_counted_within_their_window() -> None:
    said = pb.LogMatches(pattern="(?i)nccl .*timeout", min_level=events_pb2.LOG_LEVEL_WARNING, count=3)
    said.window.FromSeconds(10)
    life = Life(rule(log_matches=said))
    warn = events_pb2.LOG_LEVEL_WARNING
    hit, miss = (warn, "NCCL collective timeout"), (events_pb2.LOG_LEVEL_INFO, "NCCL collective timeout")
    life.give(Lines(SECOND, [hit, miss]), Lines(9 * SECOND, [hit]), Lines(14 * SECOND, [hit]))
    assert life.times() == []
    life.give(Lines(15 * SECOND, [hit, (warn, "fine")]))
    assert life.times() == [(15, 15, None)]
    life.subject.advance(60 * SECOND)
    assert life.times() == [(15, 15, 19)]


def _threshold() -> pb.AlertRule:
    return rule(threshold=above(5))


def _held_mean() -> pb.AlertRule:
    return rule(hold=2.5, threshold=above(5, num_points=3))


def _falling() -> pb.AlertRule:
    return rule(trend=pb.MetricTrend(key="loss", num_points=2, trend=pb.TREND_FALLING, change=0.3))


def _not_finite() -> pb.AlertRule:
    return rule(hold=1, not_finite=pb.MetricNotFinite())


def _stuck() -> pb.AlertRule:
    body = rule(no_progress=pb.NoProgress())
    body.condition.no_progress.duration.FromMilliseconds(2500)
    return body


def _queued() -> pb.AlertRule:
    body = rule(hold=1, queue_wait=pb.QueueWait())
    body.condition.queue_wait.duration.FromMilliseconds(1500)
    return body


def _failed() -> pb.AlertRule:
    return rule(job_state=pb.JobStateIs(states=["FAILED", "PAUSED"]))


def _lines() -> pb.AlertRule:
    said = pb.LogMatches(pattern="bad", count=3)
    said.window.FromSeconds(4)
    return rule(hold=0.5, log_matches=said)


RULES = [_threshold, _held_mean, _falling, _not_finite, _stuck, _queued, _failed, _lines]


def history(rng: random.Random) -> list[tuple[int, Sample]]:
    """What might be stored of a job, in the order of its time."""
    found: list[tuple[int, Sample]] = []
    time_us, step = 0, 0
    for _ in range(rng.randrange(5, 60)):
        time_us += rng.choice((0, 100_000, 700_000, SECOND, 4 * SECOND))
        kind = rng.random()
        if kind < 0.6:
            rows = rng.randrange(1, 5)
            steps = [max(1, step + rng.choice((-3, 1))), *[1] * (rows - 1)]
            step = sum(steps)
            values = [rng.choice((1.0, 4.0, 6.0, 9.0, float("nan"), float("inf"))) for _ in range(2 * rows)]
            times = [time_us, *[200_000] * (rows - 1)]
            time_us = sum(times)
            found.append((times[0], Records(1, rng.randrange(2), ("loss", "norm"), values, steps, times)))
        elif kind < 0.85:
            lines = [(0, rng.choice(("bad", "good"))) for _ in range(rng.randrange(3))]
            found.append((time_us, Lines(time_us, lines)))
        else:
            state = rng.choice(("QUEUED", "RUNNING", "PAUSED"))
            found.append((time_us, Change(time_us, state)))
    if rng.random() < 0.5:
        found.append((time_us, Change(time_us, "FAILED", terminal=True)))
    return found


def halves(sample: Sample, at: int) -> list[Sample]:
    """A batch as the bus may cut it."""
    if not isinstance(sample, Records) or len(sample) <= at or at == 0:
        return [sample]
    one = Records(
        sample.epoch, sample.rank, sample.keys, sample.values[: 2 * at],
        sample.step_deltas[:at], sample.time_deltas_us[:at],
    )  # fmt: skip
    whole = (sample.keys, sample.values, sample.step_deltas, sample.time_deltas_us)
    return [one, Records(sample.epoch, sample.rank, *whole, at)]


@pytest.mark.parametrize("make", RULES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_live_in_any_pieces_finds_what_the_whole_history_holds(
    make: Callable[[], pb.AlertRule], seed: int
) -> None:
    rng = random.Random(seed)
    given_samples = history(rng)
    end = given_samples[-1][0] + 7200 * SECOND
    whole = Life(make())
    whole.give(*(sample for _, sample in given_samples))
    whole.subject.advance(end)
    live = Life(make())
    for time_us, sample in given_samples:
        if rng.random() < 0.5:  # everything before this time was given: the clock may say so, or not
            live.subject.advance(time_us)
        for part in halves(sample, rng.randrange(3)):
            live.give(part)
            if rng.random() < 0.3:
                live.restart()
            if rng.random() < 0.2 and isinstance(part, Records):  # what the bus delivers twice
                live.give(part)
    live.subject.advance(end)
    assert live.collect() == whole.collect()
