"""Whatever is killed, stopped or resumed, the bits at the end are those of the undisturbed run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.trainer import support
from tests.trainer.support import Trainer

Start = Callable[..., Trainer]
MakeRun = Callable[..., Path]

LORA = support.spec(max_steps="40", checkpoint_every_steps="3", eval_every_steps="5", eval_fraction=0.2)
BFLOAT16 = support.spec(max_steps="40", checkpoint_every_steps="3", precision="PRECISION_BFLOAT16")
FULL = support.spec({"full": {}}, max_steps="40", checkpoint_every_steps="3", learning_rate=0.001)


def more_records(run: Path, known: int) -> bool:
    return len(support.records(run)) > known


def announced(run: Path, number: int) -> bool:
    return len(support.events(run, "checkpoint")) >= number


def passed(instant: float) -> bool:
    return time.monotonic() > instant


@pytest.mark.parametrize(
    ("job", "kills"), [(LORA, 10), (BFLOAT16, 3), (FULL, 3)], ids=["lora", "bfloat16", "full"]
)
def test_killed_anywhere_ends_bit_identical(
    make_run: MakeRun, start: Start, job: dict[str, Any], kills: int
) -> None:
    calm, stormy = make_run(job, "calm"), make_run(job, "stormy")
    assert start(calm).end() == 0, support.log_of(calm)
    dice = random.Random(job["training"]["max_steps"])
    interrupted = 0
    while interrupted < kills:
        known = len(support.records(stormy))
        trainer = start(stormy)
        support.wait_for(partial(more_records, stormy, known), "new step")
        # Anywhere in the next few steps of about 10 ms: batches, the optimizer, a checkpoint being written.
        instant = time.monotonic() + dice.uniform(0, 0.06)
        support.wait_for(partial(passed, instant), "instant")
        trainer.kill()
        if support.status(stormy)["finished"] is not None:
            break  # it was quicker; nothing is left to interrupt
        interrupted += 1
    assert interrupted >= 2
    assert start(stormy).end() == 0, support.log_of(stormy)
    assert support.tensors(stormy) == support.tensors(calm)
    assert support.losses(stormy) == support.losses(calm)
    assert support.digest_of(stormy / "output") == support.digest_of(calm / "output")


def test_stopped_and_resumed_in_another_folder_ends_bit_identical(make_run: MakeRun, start: Start) -> None:
    job = support.spec(max_steps="120", checkpoint_every_steps="0")
    calm, first = make_run(job, "calm"), make_run(job, "first")
    assert start(calm).end() == 0, support.log_of(calm)
    trainer = start(first)
    support.wait_for(lambda: len(support.records(first)) >= 5, "fifth step")
    support.set_control(first, "stop")
    assert trainer.end() == 75, support.log_of(first)
    assert support.finished(first)["result"] == "checkpointed"
    step = support.status(first)["step"]
    assert 5 <= step < 120
    (saved,) = support.checkpoints(first)
    assert saved.name == f"step-{step:08d}"
    second = make_run(job, "second", epoch=2, checkpoint=support.checkpoint_of(saved, step))
    assert start(second).end() == 0, support.log_of(second)
    assert min(support.losses(second)) == step + 1  # it began there: no step was run again
    assert support.tensors(second) == support.tensors(calm)
    assert support.losses(first) | support.losses(second) == support.losses(calm)


def test_sigterm_stops_with_a_checkpoint(make_run: MakeRun, start: Start) -> None:
    run = make_run(support.spec(max_steps="100000", checkpoint_every_steps="0"))
    trainer = start(run)
    support.wait_for(lambda: support.records(run), "first step")
    trainer.terminate()
    assert trainer.end() == 75, support.log_of(run)
    assert support.finished(run)["result"] == "checkpointed"
    assert support.checkpoints(run)


def test_checkpoint_on_request_goes_on(make_run: MakeRun, start: Start) -> None:
    run = make_run(support.spec(max_steps="100000", checkpoint_every_steps="0"))
    trainer = start(run)
    support.wait_for(lambda: support.records(run), "first step")
    for number in (1, 2):  # the same word again is a new wish
        support.set_control(run, "checkpoint")
        support.wait_for(partial(announced, run, number), "checkpoint")
    steps = len(support.records(run))
    support.wait_for(partial(more_records, run, steps), "another step")
    trainer.kill()


def test_stop_before_the_first_step_is_kept(make_run: MakeRun, start: Start) -> None:
    run = make_run(support.spec())
    support.set_control(run, "stop")
    assert start(run).end() == 75, support.log_of(run)
    assert [path.name for path in support.checkpoints(run)] == ["step-00000000"]
    support.set_control(run, "run")
    assert start(run).end() == 0, support.log_of(run)
    assert sorted(support.losses(run)) == list(range(1, 9))
