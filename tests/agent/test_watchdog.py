"""The watchdog tells a trainer that hangs from one that is slow, asleep with its machine, or loading."""

from datetime import timedelta
from typing import Any

from tunesmith_agent.watchdog import Watchdog


def status(step: int, time: float, phase: str = "TRAIN_BATCH_FORWARD") -> dict[str, Any]:
    """A status as the trainer writes it."""
    return {"step": step, "time": time, "phase": phase}


def watch(dog: Watchdog, shown: dict[str, Any], seconds: int, start: float = 0.0) -> float:
    """Looks twice a second at a status that stays the same; returns when the dog barks, 0 if it does not."""
    for half in range(2 * seconds):
        if dog.stalled_for(shown, start + half / 2):
            return half / 2
    return 0.0


def test_a_trainer_that_stands_still_is_noticed_after_the_time_the_spec_gives() -> None:
    dog = Watchdog(timedelta(seconds=30))
    assert 30 < watch(dog, status(3, 1.0), 60) < 32


def test_without_a_time_in_the_spec_the_limit_grows_with_the_median_step() -> None:
    fast, slow = Watchdog(timedelta()), Watchdog(timedelta())
    for step in range(5):
        fast.stalled_for(status(step, step * 0.1), step)
        slow.stalled_for(status(step, step * 60.0), step)
    assert fast.limit("TRAIN_BATCH_FORWARD") == 120
    assert slow.limit("TRAIN_BATCH_FORWARD") == 20 * 60


def test_one_step_that_took_long_does_not_move_the_median() -> None:
    dog = Watchdog(timedelta())
    at = 0.0
    for step in range(20):
        at += 600.0 if step == 10 else 10.0
        dog.stalled_for(status(step, at), at)
    assert dog.limit("VAL_BATCH_FORWARD") == 20 * 10


def test_any_movement_starts_the_time_anew() -> None:
    dog = Watchdog(timedelta(seconds=30))
    assert not watch(dog, status(3, 1.0), 25)
    assert not watch(dog, status(3, 1.5), 25, start=25)
    assert not watch(dog, status(3, 1.5, "TRAIN_BATCH_BACKWARD"), 25, start=50)


def test_loading_and_exporting_may_be_quiet_for_long() -> None:
    for phase in ("INIT", "TRAINING_COMPLETE"):
        assert not watch(Watchdog(timedelta(seconds=30)), status(0, 1.0, phase), 600)


def test_a_machine_that_slept_is_not_a_hang() -> None:
    dog = Watchdog(timedelta(seconds=30))
    dog.stalled_for(status(3, 1.0), 0.0)
    assert not dog.stalled_for(status(3, 1.0), 3600.0), "an hour passed, but nobody looked"
    assert watch(dog, status(3, 1.0), 60, start=3600.5), "from here on time counts again"
