"""What a run tells and leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer import support
from tunesmith_trainer import artifact

Train = Callable[..., int]
MakeRun = Callable[..., Path]


def test_run_completes_and_the_loss_falls(make_run: MakeRun, train: Train) -> None:
    run = make_run(support.spec(max_steps="16"))
    assert train(run) == 0, support.log_of(run)
    record = support.status(run)
    assert record["finished"]["result"] == "completed"
    assert (record["phase"], record["step"], record["total_steps"]) == ("TRAINING_COMPLETE", 16, 16)
    losses = support.losses(run)
    assert sorted(losses) == list(range(1, 17))
    assert record["first_loss"] == losses[1]
    assert record["loss"] < losses[1] - 0.5


def test_output_and_checkpoints_are_sealed_and_say_what_they_are(make_run: MakeRun, train: Train) -> None:
    run = make_run(support.spec())
    assert train(run) == 0, support.log_of(run)
    made = artifact.verify(run / "output")
    assert made.kind == "model"
    assert made.properties["method"] == "METHOD_SFT"
    assert made.properties["adapter"] == "lora"
    assert made.properties["steps"] == "8"
    assert float(made.properties["final_loss"]) < float(made.properties["first_loss"])
    names = [path.name for path in support.checkpoints(run)]
    assert names == ["step-00000004", "step-00000006", "step-00000008"]  # the newest and two more
    told = {event["path"]: event for event in support.events(run, "checkpoint")}
    for path in support.checkpoints(run):
        checkpoint = artifact.verify(path)
        event = told[f"checkpoints/{path.name}"]
        assert (event["digest"], event["size_bytes"]) == (checkpoint.digest, checkpoint.size_bytes)
        assert checkpoint.properties["spec_digest"] == made.properties["spec_digest"]


def test_metrics_hold_every_key_and_count_without_gap(make_run: MakeRun, train: Train) -> None:
    run = make_run(support.spec(eval_every_steps="4", eval_fraction=0.25))
    assert train(run) == 0, support.log_of(run)
    records = support.records(run)
    assert [seq for seq, _, _ in records] == list(range(1, len(records) + 1))
    first = records[0][2]
    assert sorted(first) == [
        "train/epoch",
        "train/grad_norm",
        "train/learning_rate",
        "train/loss",
        "train/num_tokens",
        "train/tokens_per_second",
    ]
    evaluated = {step: values["eval/loss"] for _, step, values in records if "eval/loss" in values}
    assert sorted(evaluated) == [4, 8]
    assert support.status(run)["eval_loss"] == evaluated[8]


def test_a_record_of_several_steps_is_their_mean(make_run: MakeRun, train: Train) -> None:
    each, rare = make_run(support.spec(), "each"), make_run(support.spec(log_every_steps="3"), "rare")
    assert train(each) == train(rare) == 0
    losses, means = support.losses(each), support.losses(rare)
    assert sorted(means) == [3, 6, 8]  # the last step is always told
    assert min(losses[1], losses[2], losses[3]) < means[3] < max(losses[1], losses[2], losses[3])
    assert support.tensors(each) == support.tensors(rare)


def test_samples_are_answered_before_and_after_without_changing_the_training(
    make_run: MakeRun, train: Train
) -> None:
    job = support.spec()
    silent = make_run(job, "silent")
    job["sample_prompts"] = ["how many trains go to city 3?"]
    asked = make_run(job, "asked")
    known = make_run(job, "known", samples=[{"prompt": job["sample_prompts"][0], "before": "none"}])
    assert train(silent) == train(asked) == train(known) == 0
    samples = support.events(asked, "sample")
    assert [sample["when"] for sample in samples] == ["before", "after"]
    assert samples[0]["text"] != samples[1]["text"]
    assert [sample["when"] for sample in support.events(known, "sample")] == ["after"]
    assert support.tensors(silent) == support.tensors(asked)


def test_accumulation_is_exact_in_the_mean_over_tokens(make_run: MakeRun, train: Train) -> None:
    adapter = {"lora": {"r": 4, "alpha": 8.0, "dropout": 0.0}}
    sizes = {"micro_batch_size": 4, "gradient_accumulation_steps": 1}
    whole = make_run(support.spec(adapter, **sizes), "whole")
    parts = make_run(
        support.spec(adapter, **(sizes | {"micro_batch_size": 1, "gradient_accumulation_steps": 4})), "parts"
    )
    assert train(whole) == train(parts) == 0
    # The same examples in each step, so only the order of the sums differs. Means of means would be 5 % off.
    assert support.losses(parts) == pytest.approx(support.losses(whole), rel=1e-3)


def test_plain_texts_train_too(make_run: MakeRun, train: Train, tmp_path: Path) -> None:
    rows = [{"text": f"train {index} goes to the city"} for index in range(12)]
    run = make_run(support.spec(), dataset=support.write_dataset(tmp_path / "texts", rows))
    assert train(run) == 0, support.log_of(run)
    assert support.status(run)["loss"] < support.status(run)["first_loss"]
