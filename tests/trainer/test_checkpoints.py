"""Damaged, foreign and unwritable checkpoints."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from tests.trainer import support
from tests.trainer.support import Trainer

Start = Callable[..., Trainer]
Train = Callable[..., int]
MakeRun = Callable[..., Path]


def test_damaged_checkpoint_is_skipped_for_the_one_before(make_run: MakeRun, train: Train) -> None:
    run = make_run(support.spec())
    assert train(run) == 0, support.log_of(run)
    whole = support.tensors(run)
    newest = support.checkpoints(run)[-1] / "trainable.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1  # loads silently without the hash
    newest.write_bytes(data)
    # The spool's end may be torn as well: a record that was half written when the power failed.
    spool = sorted((run / "spool").glob("metrics-*.bin"))[-1]
    spool.write_bytes(spool.read_bytes()[:-7])
    assert train(run) == 0, support.log_of(run)
    warnings = [event["message"] for event in support.events(run, "log") if event["level"] == "warning"]
    assert any("step 8 is damaged" in message for message in warnings)
    assert support.tensors(run) == whole
    assert sorted(support.losses(run)) == list(range(1, 9))
    sequence = [seq for seq, _, _ in support.records(run)]
    assert sequence == list(range(1, len(sequence) + 1))


def test_damaged_given_checkpoint_is_a_fault_of_the_infrastructure(make_run: MakeRun, train: Train) -> None:
    first = make_run(support.spec(), "first")
    assert train(first) == 0
    saved = support.checkpoints(first)[0]
    given = support.checkpoint_of(saved, 4)
    (saved / "state.json").write_bytes(b"{}")
    second = make_run(support.spec(), "second", checkpoint=given)
    assert train(second) == 70
    assert support.finished(second)["failure_class"] == "INFRA"
    assert support.finished(second)["reason"] == "CHECKPOINT_DAMAGED"


def test_checkpoint_of_something_else_is_refused(make_run: MakeRun, train: Train) -> None:
    first = make_run(support.spec(), "first")
    assert train(first) == 0
    saved = support.checkpoints(first)[0]
    other = make_run(support.spec(seed="8"), "other", checkpoint=support.checkpoint_of(saved, 4))
    assert train(other) == 70
    record = support.finished(other)
    assert (record["failure_class"], record["reason"]) == ("RESUME_MISMATCH", "SPEC_DIGEST_DIFFERS")
    assert record["remedy"]


def test_checkpoint_of_another_environment_is_refused(make_run: MakeRun, train: Train) -> None:
    from tunesmith_trainer import artifact

    run = make_run(support.spec())
    assert train(run) == 0
    newest = support.checkpoints(run)[-1]
    state = json.loads((newest / "state.json").read_bytes())
    state["environment"]["torch"] = "0.0.1"
    (newest / "state.json").write_bytes(artifact.canonical_json(state))
    artifact.seal(newest, "checkpoint", {})
    assert train(run) == 70
    record = support.finished(run)
    assert record["failure_class"] == "RESUME_MISMATCH"
    assert "fingerprint.torch" in record["message"]
    assert "0.0.1" in record["message"]


def test_full_disk_fails_as_infrastructure_and_keeps_the_old_checkpoint(
    make_run: MakeRun, train: Train
) -> None:
    run = make_run(support.spec({"full": {}}, learning_rate=0.001))
    # The weights (0.6 MB) fit, the optimizer's state (1.1 MB) does not.
    assert train(run, file_size_limit=800_000) == 70
    record = support.finished(run)
    assert (record["failure_class"], record["reason"]) == ("INFRA", "DISK_FULL")
    assert support.checkpoints(run) == []
    assert not list((run / "checkpoints").iterdir())
    assert train(run) == 0, support.log_of(run)


def test_what_differs_is_named_and_accepted_only_when_asked_for(make_run: MakeRun, train: Train) -> None:
    from tunesmith_trainer import artifact

    first = make_run(support.spec(), "first")
    assert train(first) == 0
    saved = support.checkpoints(first)[0]
    other = make_run(support.spec(seed="8"), "other", checkpoint=support.checkpoint_of(saved, 4))
    assert train(other) == 70
    assert "spec.training.seed: 7 -> 8" in support.finished(other)["message"]
    forked = make_run(
        support.spec(seed="8"), "forked", checkpoint=support.checkpoint_of(saved, 4), forked=True
    )
    assert train(forked) == 0, support.log_of(forked)
    assert support.status(forked)["resumed_step"] == 4
    assert not support.events(forked, "drift")
    state = support.state_of(saved)
    state["environment"]["torch"] = "0.0.1"
    (saved / "state.json").write_bytes(artifact.canonical_json(state))
    artifact.seal(saved, "checkpoint", {})
    drifted = make_run(
        support.spec(), "drifted", checkpoint=support.checkpoint_of(saved, 4), accept_drift=True
    )
    assert train(drifted) == 0, support.log_of(drifted)
    (drift,) = support.events(drifted, "drift")
    assert drift["items"][0].startswith("torch: 0.0.1 -> ")


def test_run_goes_on_without_a_checkpoint_that_cannot_be_written(make_run: MakeRun, start: Start) -> None:
    run = make_run(support.spec(max_steps="100000", checkpoint_every_steps="3"))
    trainer = start(run)
    support.wait_for(lambda: support.checkpoints(run), "checkpoint")
    kept = support.checkpoints(run)
    # A file where the folder of the hidden copy must be: what the side process meets is a real error.
    blocked = [run / "checkpoints" / f".step-{step:08d}.tmp" for step in range(3, 6000, 3)]
    for path in blocked:
        with contextlib.suppress(IsADirectoryError):  # it is being written just now
            path.write_text("")
            path.chmod(0)
    support.wait_for(
        lambda: any(
            "no checkpoint could be written" in event["message"] for event in support.events(run, "log")
        ),
        "warning",
    )
    known = len(support.records(run))
    support.wait_for(lambda: len(support.records(run)) > known, "another step")
    assert support.checkpoints(run)[0].name >= kept[0].name
    for path in blocked:
        path.unlink(missing_ok=True)
    announced = len(support.events(run, "checkpoint"))
    support.wait_for(lambda: len(support.events(run, "checkpoint")) > announced, "checkpoint after all")
    trainer.kill()


def test_pace_holds_training_up_for_no_more_than_its_share() -> None:
    from tunesmith_trainer.pace import Pace

    now = [0.0]
    pace = Pace(0.01, clock=lambda: now[0])
    for seconds in (0.5, *[0.02] * 2000):
        if pace.due():
            with pace.spending(
                measured=seconds < 0.1
            ):  # the first makes the file, and says nothing of the rest
                now[0] += seconds
        now[0] += 0.1
    assert 0.005 < (pace.total_seconds - 0.5) / now[0] <= 0.0105
    rare = Pace(0.01, least_seconds=10.0, clock=lambda: now[0])
    assert not rare.due()
    now[0] += 10.0
    assert rare.due()
    assert Pace(1.0, clock=lambda: now[0]).due()
