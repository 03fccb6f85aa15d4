"""The checker itself: it must see each kind of broken promise, or a green campaign means nothing."""

import struct
import zlib

import pytest

from tests.faults import figures
from tests.faults.checker import expected_points
from tests.faults.schedule import KINDS, kinds_of, schedule
from tests.faults.spools import Record, read_segment


def record(epoch: int, seq: int, step: int, time: float, value: float = 0.5) -> Record:
    return Record(epoch, seq, step, time, {"train/loss": value})


def test_the_same_seed_gives_the_same_faults() -> None:
    for mode in ("embedded", "distributed"):
        kinds = kinds_of(mode)
        assert schedule(7, 100, 60, mode, kinds) == schedule(7, 100, 60, mode, kinds)
        assert schedule(7, 100, 60, mode, kinds) != schedule(8, 100, 60, mode, kinds)
        assert {blow.kind for blow in schedule(7, 2000, 60, mode, kinds)} == set(kinds)
    assert len({kind.name for kind in KINDS}) == len(KINDS)


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
    assert figures.recoveries(deaths, records) == [pytest.approx(3.5)]


def test_the_effective_share_counts_a_step_once_and_a_pause_not_at_all() -> None:
    steady = {"a": [record(1, i, i, float(i)) for i in range(1, 11)]}
    assert figures.effective_share(steady) == 1.0
    redone = {"a": steady["a"][:5] + [record(2, i, i, 10.0 + i) for i in range(3, 11)]}
    share = figures.effective_share(redone)
    assert share == pytest.approx(10 / 20, abs=0.01)
    assert figures.effective_share({}) is None
