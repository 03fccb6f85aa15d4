"""Snapshots and where an attempt begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from tests.trainer import storm, support
from tests.trainer.storm import Crew, Start
from tunesmith_trainer import snapshot
from tunesmith_trainer.snapshot import Slots

Train = Callable[..., int]
MakeRun = Callable[..., Path]


def write(slots: Slots, value: float) -> None:
    tensors = {"trainable/a": torch.full((100,), value), "optimizer/step.a": torch.tensor(value)}
    slots.write({"progress": {"step": int(value)}}, tensors, "same", (int(value), 0))


def test_one_slot_is_whole_whatever_becomes_of_the_other(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "1.slots")
    for value in range(1, 6):
        write(slots, float(value))
        assert max(item.position for item in snapshot.find(tmp_path)) == (value, 0)
    newest = max(snapshot.find(tmp_path), key=lambda item: item.position)
    assert torch.equal(newest.load()["trainable/a"], torch.full((100,), 5.0))
    path = tmp_path / "1.slots"
    whole = path.read_bytes()
    half = len(whole) // 2
    at = 0 if any(item.header.step == 5 and item.first < half for item in snapshot.find(tmp_path)) else half
    used = newest.first + newest.header.tensor_bytes
    for place in range(at, used, 13):  # any byte of the newest one's header, JSON or tensors
        damaged = bytearray(whole)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        found = {item.position for item in snapshot.find(tmp_path)}
        assert found == {(4, 0)} or (found == {(4, 0), (5, 0)} and at + 60 < place < at + 128)


def test_slots_grow_without_a_moment_in_which_none_is_whole(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "1.slots")
    for size in (10, 10_000, 100, 1_000_000):
        tensors = {"trainable/a": torch.full((size,), float(size))}
        slots.write({"progress": {}}, tensors, size, (size, 0))
        assert any(item.position == (size, 0) for item in snapshot.find(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.slots"]


def test_kill_costs_no_step_and_the_next_attempt_says_so(
    make_run: MakeRun, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "memory").mkdir()
    job = support.spec(checkpoint_every_steps="100", max_checkpoint_overhead=1.0)
    run = make_run(job, snapshots=str(tmp_path / "memory"))
    assert Crew(start, run, 1, die_at="TRAIN_BATCH_LOAD", visit=9).bury()  # the first of step 5
    storm.set_field(run, epoch=2)
    assert Crew(start, run, 1).end() == [0], support.log_of(run)
    record = support.status(run)
    assert (record["resumed_step"], record["resumed_from"]) == (4, "snapshot")
    assert 0 < record["checkpoint_seconds"] < record["training_seconds"]
    assert record["checkpoint_age_seconds"] is not None
    assert [path.name for path in (tmp_path / "memory").iterdir()] == ["2.slots"]  # the older one is removed
    calm = make_run(job, "calm")
    assert Crew(start, calm, 1).end() == [0]
    assert storm.outcome(run) == storm.outcome(calm)


def test_kill_in_micro_mode_costs_no_micro_batch(make_run: MakeRun, start: Start, tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    job = support.spec(
        gradient_accumulation_steps=4,
        max_steps="4",
        snapshots="SNAPSHOT_MODE_MICRO_STEP",
        logical_shards=2,
        checkpoint_every_steps="100",
        max_checkpoint_overhead=1.0,
    )
    calm = make_run(job, "calm")
    assert Crew(start, calm, 1).end() == [0], support.log_of(calm)
    for ranks in (1, 2):
        shutil.rmtree(tmp_path / "memory")
        (tmp_path / "memory").mkdir()
        run = make_run(job, f"ranks-{ranks}", snapshots=str(tmp_path / "memory"))
        visit = 8 // ranks  # the last micro-batch of the first step
        assert Crew(start, run, ranks, die_at="TRAIN_BATCH_BACKWARD", visit=visit).bury()
        newest = max(snapshot.find(tmp_path / "memory"), key=lambda item: item.position)
        assert newest.record["progress"]["step"] == 0
        assert [item["round"] for item in newest.record["progress"]["partial"]] == [visit - 1] * ranks
        assert set(Crew(start, run, ranks).end()) == {0}, support.log_of(run)
        assert storm.outcome(run) == storm.outcome(calm)


def test_stop_within_a_step_and_within_an_evaluation_goes_on_there(make_run: MakeRun, start: Start) -> None:
    job = support.spec(
        max_steps="4",
        gradient_accumulation_steps=3,
        eval_every_steps="2",
        eval_fraction=0.5,
        checkpoint_every_steps="100",
    )
    calm = make_run(job, "calm")
    assert Crew(start, calm, 1).end() == [0], support.log_of(calm)
    before = make_run(job, "before")
    places = (("TRAIN_BATCH_FORWARD", 2), ("VAL_BATCH_FORWARD", 3))
    for number, (place, visit) in enumerate(places):
        assert Crew(start, before, 1, stop_at=place, visit=visit).end() == [75], support.log_of(before)
        (saved,) = support.checkpoints(before)
        state = support.state_of(saved)["progress"]
        assert (state["evaluated"] == 2) if number else (state["partial"][0]["round"] == 1)
        after = make_run(job, f"after-{number}", checkpoint=support.checkpoint_of(saved, state["step"]))
        before = after
    assert Crew(start, before, 1).end() == [0], support.log_of(before)
    assert support.status(before)["resumed_from"] == "checkpoint"
    assert support.tensors(before) == support.tensors(calm)
    last = support.metrics(before)
    assert last
    assert last.items() <= support.metrics(calm).items()


def test_memory_that_is_full_means_no_snapshots_and_a_warning(
    make_run: MakeRun, train: Train, tmp_path: Path
) -> None:
    (tmp_path / "memory").mkdir()
    run = make_run(support.spec({"full": {}}, learning_rate=0.001), snapshots=str(tmp_path / "memory"))
    # Nothing larger than 3 MB may be written: a slot has 1.7 MB and there are two of them.
    assert train(run, file_size_limit=3_000_000) == 0, support.log_of(run)
    warnings = [event["message"] for event in support.events(run, "log") if event["level"] == "warning"]
    assert any(message.startswith("no snapshots") for message in warnings)
    assert not list((tmp_path / "memory").iterdir())
    assert support.checkpoints(run)


def test_snapshot_of_another_spec_is_passed_over(make_run: MakeRun, start: Start, tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    memory = str(tmp_path / "memory")
    first = make_run(support.spec(max_checkpoint_overhead=1.0), "first", snapshots=memory)
    assert Crew(start, first, 1, die_at="TRAIN_BATCH_LOAD", visit=9).bury()
    other = make_run(support.spec(seed="8", max_checkpoint_overhead=1.0), "other", snapshots=memory, epoch=2)
    assert Crew(start, other, 1).end() == [0], support.log_of(other)
    assert (support.status(other)["resumed_step"], support.status(other)["resumed_from"]) == (0, "")
