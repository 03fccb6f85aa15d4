"""Spool records: their cost, and what survives a torn end."""

from __future__ import annotations

from pathlib import Path

from tests.trainer import support
from tunesmith_trainer import report
from tunesmith_trainer.report import EventSpool, MetricSpool

KEYS = tuple(f"train/metric_{index}" for index in range(10))


def test_segments_roll_and_each_names_its_keys(tmp_path: Path) -> None:
    original, report.SEGMENT_BYTES = report.SEGMENT_BYTES, 2_000
    try:
        spool = MetricSpool(tmp_path / "spool")
        for step in range(1, 101):
            spool.write(step, KEYS, [float("nan"), *range(9)])
        spool.close()
    finally:
        report.SEGMENT_BYTES = original
    assert len(list((tmp_path / "spool").glob("metrics-*.bin"))) > 3
    records = support.records(tmp_path)
    assert [(seq, step) for seq, step, _ in records] == [(step, step) for step in range(1, 101)]
    assert all(sorted(values) == sorted(KEYS) for _, _, values in records)


def test_new_writer_counts_on_after_a_torn_end(tmp_path: Path) -> None:
    for _ in range(3):
        spool = MetricSpool(tmp_path / "spool")
        events = EventSpool(tmp_path / "spool")
        for step in (1, 2):
            spool.write(step, KEYS, [0.0] * 10)
            events.event("log", level="info", message="hello")
        spool.close()
        events.close()
        for path in (tmp_path / "spool").iterdir():
            path.write_bytes(path.read_bytes()[:-3])
    # The torn second record of each writer never happened, so its number is given again.
    assert [seq for seq, _, _ in support.records(tmp_path)] == [1, 2, 3]
