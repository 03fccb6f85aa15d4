"""Damaged, foreign and unwritable checkpoints."""

from __future__ import annotations

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
