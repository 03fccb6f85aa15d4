"""The checker itself: it must see each kind of broken promise, or a green campaign means nothing."""

import struct
import zlib

import pytest

from tests.faults import figures
from tests.faults.checker import expected_points
from tests.faults.schedule import KINDS, LULL_EVERY, LULL_SECONDS, kinds_of, schedule
from tests.faults.spools import Record, read_segment
from tunesmith.api.jobs.v1 import state_pb2


def record(epoch: int, seq: int, step: int, time: float, value: float = 0.5) -> Record:
    return Record(epoch, seq, step, time, {"train/loss": value})


def test_the_same_seed_gives_the_same_faults() -> None:
    for mode in ("embedded", "distributed"):
        kinds = kinds_of(mode)
        assert schedule(7, 100, 60, mode, kinds) == schedule(7, 100, 60, mode, kinds)
        assert schedule(7, 100, 60, mode, kinds) != schedule(8, 100, 60, mode, kinds)
        assert {blow.kind for blow in schedule(7, 2000, 60, mode, kinds)} == set(kinds)
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_now_and_then_a_trainer_is_killed_and_nothing_else_happens() -> None:
    blows = schedule(7, 3 * LULL_EVERY, 60, "embedded", kinds_of("embedded"))
    alone = [blow for blow in blows if blow.gap == LULL_SECONDS]
    assert [blow.number % LULL_EVERY for blow in alone] == [LULL_EVERY - 1, 0] * 2 + [LULL_EVERY - 1]
    assert {blow.kind for blow in alone[::2]} == {"kill_trainer"}


def test_the_newest_attempt_says_what_a_step_was_worth() -> None:
    points = expected_points([record(1, 1, 1, 0, 3.0), record(1, 2, 2, 1, 2.0), record(2, 1, 2, 9, 2.5)])
    assert points == {("train/loss", 1): 3.0, ("train/loss", 2): 2.5}


def test_a_torn_record_was_never_written() -> None:
    key = b"\1" + struct.pack("<H", 0) + b"train/loss"
    step = b"\2" + struct.pack("<QqqHHd", 1, 1, 2_000_000, 1, 0, 0.25)
    framed = [struct.pack("<II", len(body) + 4, zlib.crc32(body)) + body for body in (key, step, step)]
    whole = b"TSMETR01" + b"".join(framed)
    assert [r.values for r in read_segment(whole, 1)] == [{"train/loss": 0.25}] * 2
    for cut in range(len(whole) - len(framed[2]), len(whole)):
        assert len(list(read_segment(whole[:cut], 1))) == 1
    assert list(read_segment(b"", 1)) == list(read_segment(b"TSME", 1)) == []


def test_recovery_is_from_a_death_to_the_next_step_of_that_job() -> None:
    records = {"a": [record(1, 1, 1, 10.0), record(1, 2, 2, 11.0), record(2, 1, 2, 15.0)], "b": []}
    deaths = [{"job": job, "epoch": 1, "time": 11.5} for job in ("a", "b")]
    (recovery,) = figures.recoveries(deaths, records, {})
    assert recovery.job == "a"
    assert recovery.seconds == pytest.approx(3.5)
    assert recovery.undisturbed


def test_a_recovery_is_undisturbed_when_no_other_fault_and_no_other_job_was_in_the_way() -> None:
    records = {"a": [record(1, 1, 1, 10.0), record(2, 1, 2, 35.0)]}
    deaths = [{"job": "a", "epoch": 1, "time": 30.0}]

    def blow(fault: str, hit: str, began: float, ended: float) -> dict[str, object]:
        return {"fault": fault, "hit": hit, "began": began, "time": ended}

    def recovery(*blows: dict[str, object], moves: tuple[tuple[float, int], ...] = ()) -> figures.Recovery:
        (found,) = figures.recoveries(deaths, records, {"a": moves}, blows)
        return found

    assert recovery(blow("kill_trainer", "a-1", 29.0, 30.1)).undisturbed, "its own blow"
    assert recovery(blow("kill_trainer", "b-4", 31.0, 31.1)).undisturbed, "another job's"
    assert recovery(blow("kill_jobs", "", 31.0, 32.0)).undisturbed, "it hit nothing"
    assert recovery(blow("kill_jobs", "jobs", 5.0, 15.0)).undisturbed, "long over"
    assert recovery(blow("kill_jobs", "jobs", 36.0, 37.0)).undisturbed, "too late"
    assert recovery(blow("kill_jobs", "jobs", 32.0, 40.0)).disturbed
    assert recovery(blow("kill_jobs", "jobs", 20.0, 25.0)).disturbed, "its aftermath"
    queued, starting = state_pb2.JOB_STATE_QUEUED, state_pb2.JOB_STATE_STARTING
    at_once = recovery(moves=((2.0, starting), (30.5, queued), (30.6, starting)))
    assert at_once.queued == pytest.approx(0.1)
    assert at_once.undisturbed
    waited = recovery(moves=((1.0, queued), (2.0, starting), (30.5, queued), (33.0, starting)))
    assert waited.queued == pytest.approx(2.5)
    assert not waited.undisturbed


def test_the_effective_share_counts_a_step_once_and_a_pause_not_at_all() -> None:
    steady = {"a": [record(1, i, i, float(i)) for i in range(1, 11)]}
    assert figures.effective_share(steady) == 1.0
    redone = {"a": steady["a"][:5] + [record(2, i, i, 10.0 + i) for i in range(3, 11)]}
    share = figures.effective_share(redone)
    assert share == pytest.approx(10 / 20, abs=0.01)
    assert figures.effective_share({}) is None
