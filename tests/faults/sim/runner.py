"""Runs many stories from one seed, in this process, and says how many a minute it managed."""

import logging
import time
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.faults.sim.points import PointStory
from tests.faults.sim.states import StateStory
from tests.faults.sim.story import Story

_STEPS = 12  # rules of a story at most; more of them cost as much as more stories, and find less
_STATE_STEPS = 40


@dataclass(frozen=True)
class Told:
    """How many stories of each kind were told, in how many seconds, and what the first broken law said."""

    stories: dict[str, int]
    seconds: dict[str, float]
    broken: str


def tell(number: int, base_seed: int) -> Told:
    """Tells `number` stories of jobs and of points, half and half, and ten times as many of states.

    These cost next to nothing. The same seed tells the same stories.
    """
    kinds = {
        "states": (StateStory, 10 * number, _STATE_STEPS),
        "jobs": (Story, number - number // 2, _STEPS),
        "points": (PointStory, number // 2, _STEPS),
    }
    told, seconds, broken = {}, {}, ""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the services complain of every fault
    try:
        for name, (kind, share, steps) in kinds.items():
            began = time.monotonic()
            told[name], broken = _tell(kind, share, base_seed, steps)
            seconds[name] = time.monotonic() - began
            if broken:
                break
    finally:
        logging.disable(disabled)
    return Told(told, seconds, broken)


def _tell(kind: type[RuleBasedStateMachine], number: int, base_seed: int, steps: int) -> tuple[int, str]:
    count = 0

    class Counted(kind):  # type: ignore[valid-type, misc]  # a class that is chosen as it runs
        def teardown(self) -> None:
            nonlocal count
            count += 1
            super().teardown()

    chosen = settings(
        max_examples=max(number, 1),
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=True,
    )
    try:
        run_state_machine_as_test(seed(base_seed)(Counted), settings=chosen)
    except AssertionError as error:
        return count, f"{error}\n" + "\n".join(getattr(error, "__notes__", []))
    return count, ""
