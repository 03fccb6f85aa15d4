"""A group of ranks: its sums, its stops, and the end of one that ends the others."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.trainer import storm, support
from tests.trainer.storm import Crew, Start
from tunesmith_trainer.gradient import Node, Tree

MakeRun = Callable[..., Path]


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 6, 8, 20])
def test_sum_over_shards_does_not_depend_on_who_adds_them(shards: int) -> None:
    parts = [torch.randn(257, generator=torch.Generator().manual_seed(shard)) for shard in range(shards)]
    present = [part.clone() if shard < shards - 1 else None for shard, part in enumerate(parts)]

    def nodes(first: int, end: int) -> list[Node]:
        copies = [None if part is None else part.clone() for part in present]
        return Tree(Node(shard, 1, copies[shard]) for shard in range(first, end)).nodes

    alone = Tree(nodes(0, shards)).fold()
    for ranks in (ranks for ranks in range(2, shards + 1) if shards % ranks == 0):
        size = shards // ranks
        shared = Tree(node for rank in range(ranks) for node in nodes(rank * size, (rank + 1) * size)).fold()
        assert shards == 1 or torch.equal(alone, shared)  # type: ignore[arg-type]


def test_stop_of_a_group_is_kept_and_goes_on_with_one_rank(make_run: MakeRun, start: Start) -> None:
    job = support.spec(max_steps="200", logical_shards=2, gradient_accumulation_steps=1, num_epochs=0.0)
    run = make_run(job)
    crew = Crew(start, run, 2)
    support.wait_for(lambda: support.records(run), "first step")
    support.set_control(run, "stop")
    assert crew.end() == [75, 75], support.log_of(run)
    stopped = support.status(run)["step"]
    assert 1 <= stopped < 200
    support.set_control(run, "run")
    assert Crew(start, run, 1, die_at="TRAIN_BATCH_END", visit=2).bury()
    assert support.status(run)["resumed_step"] == stopped


def test_fast_sums_are_exact_for_the_same_ranks_and_refuse_others(
    make_run: MakeRun, start: Start, tmp_path: Path
) -> None:
    job = support.spec(gradient_sync="GRADIENT_SYNC_FAST", logical_shards=4, max_checkpoint_overhead=1.0)
    (tmp_path / "memory").mkdir()
    calm, stormy = make_run(job, "calm"), make_run(job, "stormy", snapshots=str(tmp_path / "memory"))
    assert set(Crew(start, calm, 2).end()) == {0}, support.log_of(calm)
    assert storm.weather(start, stormy, 2, (("TRAIN_BATCH_BACKWARD", 6),)) == 1
    assert storm.outcome(stormy) == storm.outcome(calm)
    saved = support.checkpoints(calm)[0]
    alone = make_run(job, "alone", checkpoint=support.checkpoint_of(saved, 4))
    assert Crew(start, alone, 1).end() == [70]
    record = support.finished(alone)
    assert record["reason"] == "FINGERPRINT_WORLD_SIZE_DIFFERS"
    assert "2" in record["message"]


def test_error_of_one_rank_ends_all_and_is_told_by_the_first(make_run: MakeRun, start: Start) -> None:
    # 96 rows of 512 tokens want half a gigabyte: the address space of rank 1 ends before.
    job = support.spec(max_length=512, micro_batch_size=96, gradient_accumulation_steps=1)
    rows = [{"text": "the quick brown fox jumps over the lazy dog " * 60}] * 192
    run = make_run(job, dataset=support.write_dataset(make_run(job, "none") / "long", rows))
    crew = Crew(start, run, 2, victim=1, memory_limit=300 * 2**20)
    assert crew.end() == [70, 70], support.log_of(run)
    record = support.finished(run)
    assert record["failure_class"] == "OOM"
    assert record["message"].startswith("rank 1: ")


def test_signal_writes_the_stacks_into_the_log_of_any_rank(make_run: MakeRun, start: Start) -> None:
    run = make_run(support.spec(max_steps="100000"))
    crew = Crew(start, run, 2)
    support.wait_for(lambda: support.records(run), "first step")
    log = run / "logs" / "rank-1.log"
    os.kill(crew.trainers[1].pid, signal.SIGUSR2)
    support.wait_for(lambda: "Current thread" in log.read_text(), "stacks")
    assert "loop.py" in log.read_text()
    known = len(support.records(run))
    support.wait_for(lambda: len(support.records(run)) > known, "another step")  # it goes on


def test_processes_that_do_not_divide_the_shards_are_refused(make_run: MakeRun, start: Start) -> None:
    run = make_run(support.spec(logical_shards=3))
    assert set(Crew(start, run, 2).end()) == {64}
    assert "logical_shards" in support.finished(run)["message"]
