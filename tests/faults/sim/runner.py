"""Runs many stories from one seed, in this process, and says how many a minute it managed."""

import logging
import time
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.faults.sim.story import Story


@dataclass(frozen=True)
class Told:
    """How many stories were told, in how many seconds, and what the first broken law said."""

    stories: int
    seconds: float
    broken: str


def tell(number: int, base_seed: int, steps: int = 30) -> Told:
    """Tells `number` stories of at most `steps` rules; the same seed tells the same ones."""
    count = 0

    class Counted(Story):
        def teardown(self) -> None:
            nonlocal count
            count += 1
            super().teardown()

    chosen = settings(
        max_examples=number,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=True,
    )
    began, disabled = time.monotonic(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the services complain of every fault
    try:
        run_state_machine_as_test(seed(base_seed)(Counted), settings=chosen)
    except AssertionError as error:
        return Told(
            count, time.monotonic() - began, f"{error}\n" + "\n".join(getattr(error, "__notes__", []))
        )
    finally:
        logging.disable(disabled)
    return Told(count, time.monotonic() - began, "")
