"""Whatever is on and wherever it is killed, weights, optimizer and every metric are those of the calm run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer import storm, support
from tests.trainer.storm import Crew, Start

MakeRun = Callable[..., Path]
# `make matrix` sets it: every feature, on one and on two ranks, at every place.
WHOLE = os.environ.get("TUNESMITH_MATRIX") == "1"
FEATURES = sorted(storm.FEATURES) if WHOLE else ["all", "micro_snapshots"]


def calm_run(make_run: MakeRun, start: Start, feature: str, shards: int) -> Path:
    run = make_run(storm.spec_of(feature, shards), "calm")
    assert Crew(start, run, 1).end() == [0], support.log_of(run)
    return run


@pytest.mark.parametrize("feature", FEATURES)
def test_killed_at_every_phase_ends_with_the_same_bits(
    make_run: MakeRun, start: Start, tmp_path: Path, feature: str
) -> None:
    calm = calm_run(make_run, start, feature, 1)
    (tmp_path / "memory").mkdir()
    stormy = make_run(storm.spec_of(feature, 1), "stormy", snapshots=str(tmp_path / "memory"))
    assert storm.weather(start, stormy, 1) >= 12
    assert storm.outcome(stormy) == storm.outcome(calm)


@pytest.mark.parametrize("feature", FEATURES if WHOLE else ["all"])
def test_two_ranks_killed_end_with_the_bits_of_one(
    make_run: MakeRun, start: Start, tmp_path: Path, feature: str
) -> None:
    calm = calm_run(make_run, start, feature, 2)
    (tmp_path / "memory").mkdir()
    stormy = make_run(storm.spec_of(feature, 2), "stormy", snapshots=str(tmp_path / "memory"))
    places = storm.PLACES if WHOLE else (("TRAIN_BATCH_BACKWARD", 2), ("VAL_BATCH_END", 1))
    assert storm.weather(start, stormy, 2, places) >= 1
    assert storm.outcome(stormy) == storm.outcome(calm)


def test_from_four_ranks_to_two_to_one_ends_with_the_same_bits(
    make_run: MakeRun, start: Start, tmp_path: Path
) -> None:
    calm = calm_run(make_run, start, "dropout", 4)
    (tmp_path / "memory").mkdir()
    moved = make_run(storm.spec_of("dropout", 4), "moved", snapshots=str(tmp_path / "memory"))
    for ranks in (4, 2):
        assert Crew(start, moved, ranks, die_at="TRAIN_BATCH_END", visit=2).bury()
    assert Crew(start, moved, 1).end() == [0], support.log_of(moved)
    assert support.status(moved)["resumed_from"] == "snapshot"
    assert support.status(moved)["resumed_step"] >= 2
    assert storm.outcome(moved) == storm.outcome(calm)
