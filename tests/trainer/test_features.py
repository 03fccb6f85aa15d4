"""Packing, noise, skipped steps, early stopping: what they do, besides being exact (test_matrix.py)."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainer import storm, support
from tunesmith_trainer import packing
from tunesmith_trainer.data import Example, Item
from tunesmith_trainer.model import Model, Scorer
from tunesmith_trainer.noise import drop_words
from tunesmith_trainer.recipe.sft import RECIPE
from tunesmith_trainer.run import Precision

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
Train = Callable[..., int]
MakeRun = Callable[..., Path]


def some_examples(sizes: list[int]) -> list[Example]:
    dice = np.random.default_rng(3)
    return [Example(dice.integers(3, 500, size + 1), np.arange(size // 2, size)) for size in sizes]


def test_plan_of_packing_holds_each_example_once_and_wastes_little() -> None:
    dice = random.Random(5)
    lengths = [dice.randint(1, 64) for _ in range(500)]
    rows = packing.plan(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert all(sum(lengths[index] for index in row) <= 64 for row in rows)
    assert sum(lengths) / (64 * len(rows)) > 0.95
    assert packing.plan(lengths, 64) == rows
    assert packing.plan([70, 3], 64) == [[0], [1]]  # one that is too long has a row of its own


def test_packed_examples_do_not_see_each_other(base: Path) -> None:
    causal: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    scorer = Scorer(Model(causal, causal, tokenizer, torch.device("cpu"), Precision.FLOAT32))
    examples = some_examples([7, 1, 12, 5, 9])

    def logits(*rows: Item) -> torch.Tensor:
        batch = RECIPE.collate(rows)
        with torch.no_grad():
            return scorer.logits(batch.input_ids, batch.positions, batch.position_ids)

    alone = torch.cat([logits(example) for example in examples])
    joined = logits(packing.join(examples[:3]), packing.join(examples[3:]))
    torch.testing.assert_close(joined, alone, rtol=1e-4, atol=1e-5)
    # Not a matter of rounding: another first example changes not one bit of what comes after it.
    other = logits(packing.join([*some_examples([3, 7])[1:], *examples[1:3]]), packing.join(examples[3:]))
    first = examples[0].weight
    assert torch.equal(other[first:], joined[first:])
    assert not torch.equal(other[:first], joined[:first])


def test_word_dropout_changes_inputs_of_one_example_and_no_target() -> None:
    (example,) = some_examples([400])
    dropped = drop_words(example, 0.1, 512, seed=1, draw=7)
    changed = int((dropped.inputs != example.inputs).sum())
    assert 20 < changed < 60
    assert (dropped.targets == example.targets).all()
    assert (dropped.inputs == drop_words(example, 0.1, 512, seed=1, draw=7).inputs).all()
    assert (dropped.inputs != drop_words(example, 0.1, 512, seed=1, draw=8).inputs).any()


@pytest.mark.parametrize("name", ["packing", "neftune", "word_dropout"])
def test_feature_changes_the_run(make_run: MakeRun, train: Train, name: str) -> None:
    plain = make_run(support.spec(max_steps="2"), "plain")
    fields = {**storm.FEATURES[name], "max_steps": "2"}
    other = make_run(support.spec(**fields), "other")
    assert train(plain) == train(other) == 0, support.log_of(other)
    assert support.tensors(plain) != support.tensors(other)
    assert support.losses(other)[1] > 1  # of the same model on the same task


def poisoned(base: Path, target: Path, token: int) -> Path:
    """The base model with an embedding of infinities for one token."""
    from safetensors.numpy import load_file, save_file

    from tunesmith_trainer import artifact

    def fill(folder: Path) -> None:
        for path in base.iterdir():
            if path.name != artifact.MANIFEST:
                (folder / path.name).write_bytes(path.read_bytes())
        tensors = load_file(folder / "model.safetensors")
        tensors["model.embed_tokens.weight"][token] = float("inf")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    artifact.write(target, "model", {}, fill)
    return target


def test_step_that_is_not_finite_is_skipped_and_counted(
    make_run: MakeRun, start: storm.Start, base: Path, tmp_path: Path
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    (token,) = tokenizer.encode("@", add_special_tokens=False)
    rows = [{"text": "@ train"}, *({"text": f"train {index} goes to the city"} for index in range(15))]
    sources: dict[str, Any] = {
        "base": poisoned(base, tmp_path / "poisoned", token),
        "dataset": support.write_dataset(tmp_path / "texts", rows),
    }
    job = support.spec(nan_policy="NAN_POLICY_SKIP", num_epochs=2.0, max_steps="0", max_skipped_steps=2)
    (tmp_path / "memory").mkdir()
    calm, stormy = make_run(job, "calm", **sources), make_run(job, "stormy", **sources)
    storm.set_field(stormy, snapshots=str(tmp_path / "memory"))
    assert storm.Crew(start, calm, 1).end() == [0], support.log_of(calm)
    record = support.status(calm)
    assert (record["skipped_steps"], record["step"]) == (2, 8)
    skipped = [step for step, loss in support.losses(calm).items() if not np.isfinite(loss)]
    assert len(skipped) == 2
    assert storm.weather(start, stormy, 1, (("SCHEDULER_BATCH_STEP", 3), ("TRAIN_BATCH_END", 4))) == 2
    assert storm.outcome(stormy) == storm.outcome(calm)
    limited = make_run(support.spec(**{**job["training"], "max_skipped_steps": 1}), "limited", **sources)
    assert storm.Crew(start, limited, 1).end() == [70]
    assert support.finished(limited)["reason"] == "LOSS_NOT_FINITE"


def test_early_stopping_ends_training_and_keeps_the_best(make_run: MakeRun, train: Train) -> None:
    job = support.spec(
        num_epochs=20.0,
        max_steps="0",
        eval_every_steps="3",
        eval_fraction=0.2,
        early_stopping_patience=2,
        early_stopping_min_delta=100.0,
        keep_best_checkpoints=1,
        checkpoint_every_steps="2",
        keep_checkpoints=0,
    )
    run = make_run(job)
    assert train(run) == 0, support.log_of(run)
    record = support.status(run)
    # The first evaluation is the best by definition, two more do not improve on it by so much.
    assert (record["stopped_early"], record["step"]) == (True, 9)
    assert record["total_steps"] > 9
    evaluated = {step: v["eval/loss"] for step, _, v in _by_step(run) if "eval/loss" in v}
    best = min(evaluated, key=lambda step: evaluated[step])
    assert {path.name for path in support.checkpoints(run)} == {f"step-{step:08d}" for step in (best, 9)}
    last = support.checkpoint_of(run / "checkpoints" / "step-00000009", 9)
    patient = {**job, "training": {**job["training"], "early_stopping_patience": 4}}
    forked = make_run(patient, "forked", checkpoint=last, forked=True)
    assert train(forked) == 0, support.log_of(forked)
    assert support.status(forked)["step"] == 15, "a fork with more patience goes on"


def _by_step(run: Path) -> list[tuple[int, int, dict[str, float]]]:
    return [(step, seq, values) for seq, step, values in support.records(run)]


def test_divided_micro_batches_make_the_same_step_and_are_told_as_drift(
    make_run: MakeRun, train: Train
) -> None:
    adapter = {"lora": {"r": 4, "alpha": 8.0, "dropout": 0.0}}
    job = support.spec(adapter, micro_batch_size=4, gradient_accumulation_steps=1)
    whole, halved = make_run(job, "whole"), make_run(job, "halved", micro_batch_divisor=2)
    assert train(whole) == train(halved) == 0, support.log_of(halved)
    assert support.losses(halved) == pytest.approx(support.losses(whole), rel=1e-3)
    assert support.events(halved, "drift")[0]["items"] == ["micro_batch_divisor: none -> 2"]
    last = support.checkpoints(whole)[1]
    later = make_run(job, "later", micro_batch_divisor=4, checkpoint=support.checkpoint_of(last, 6))
    assert train(later) == 0, support.log_of(later)
    assert support.events(later, "drift")[0]["items"] == ["micro_batch_divisor: none -> 4"]


def test_memory_that_runs_out_is_told_with_the_setting_to_change(
    make_run: MakeRun, start: storm.Start
) -> None:
    # 96 rows of 512 tokens want half a gigabyte; the address space ends before.
    job = support.spec(max_length=512, micro_batch_size=96, gradient_accumulation_steps=1)
    rows = [{"text": "the quick brown fox jumps over the lazy dog " * 60}] * 96
    run = make_run(job, dataset=support.write_dataset(make_run(job, "none") / "long", rows))
    assert start(run, memory_limit=300 * 2**20).end() == 70, support.log_of(run)
    record = support.finished(run)
    assert (record["failure_class"], record["reason"]) == ("OOM", "OUT_OF_MEMORY")
    assert "training.micro_batch_size to 48 (it is 96)" in record["remedy"]
    assert "training.gradient_accumulation_steps to 2 (it is 1)" in record["remedy"]
