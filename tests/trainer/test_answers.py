"""Scorers in training: what they say, that they disturb no bit, and that the best checkpoint follows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer import storm, support
from tests.trainer.storm import Crew, Start
from tunesmith_trainer import writer

MakeRun = Callable[..., Path]
Train = Callable[..., int]

KINDS: list[dict[str, Any]] = [
    {"exact_match": {}},
    {"token_f1": {}},
    {"rouge": {}},
    {"bleu": {}},
    {"chrf": {}},
    {"json": {}},
    {"name": "number", "regex": {"pattern": r"\d", "full": False}},
    {"name": "length", "expression": {"expression": "answer | length", "lower_is_better": True}},
]
COURSE: dict[str, Any] = {
    "eval_every_steps": "3",
    "eval_fraction": 0.25,
    "max_steps": "12",
    "learning_rate": 0.03,
    "logical_shards": 2,
}


def answers(*scorers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The field `training.answers` of a spec."""
    generation = {"max_new_tokens": 8, "temperature": 0.0, "seed": "0", "stop": []}
    listed = [{"name": "", **scorer} for scorer in scorers]
    return {
        "answers": {"scorers": listed, "generation": generation, "batch_size": 2, "max_rows": 5, **fields}
    }


def evaluated(run: Path) -> dict[int, dict[str, float]]:
    """Metrics of the evaluations by step."""
    found = ((step, values) for _, step, values in support.records(run) if "eval/loss" in values)
    return {step: {k: v for k, v in values.items() if k.startswith("eval/")} for step, values in found}


def test_answers_are_judged_at_every_evaluation_and_disturb_no_bit(make_run: MakeRun, train: Train) -> None:
    silent = make_run(support.spec(**COURSE), "silent")
    # Sampled, for that draws random numbers: training must not see it.
    job = support.spec(**COURSE, **answers(*KINDS))
    job["training"]["answers"]["generation"]["temperature"] = 1.0
    asked = make_run(job, "asked")
    assert train(silent) == train(asked) == 0, support.log_of(asked)
    assert support.tensors(asked) == support.tensors(silent)
    assert support.losses(asked) == support.losses(silent)
    found, plain = evaluated(asked), evaluated(silent)
    assert sorted(found) == sorted(plain) == [3, 6, 9, 12]
    names = "exact_match token_f1 rouge1 rouge2 rougeL bleu chrf json number length"
    for step, values in found.items():
        assert values["eval/loss"] == plain[step]["eval/loss"]
        assert set(values) == {"eval/loss", *(f"eval/{name}" for name in names.split())}
    assert support.status(asked)["eval_scores"] == {
        name.removeprefix("eval/"): value for name, value in found[12].items() if name != "eval/loss"
    }


def test_a_kill_among_the_answers_and_two_ranks_end_with_the_same_bits(
    make_run: MakeRun, start: Start, tmp_path: Path
) -> None:
    job = support.spec(**{**COURSE, "max_steps": "6"}, **answers(*KINDS[:4]))
    calm = make_run(job, "calm")
    assert Crew(start, calm, 1).end() == [0], support.log_of(calm)
    (tmp_path / "memory").mkdir()
    stormy = make_run(job, "stormy", snapshots=str(tmp_path / "memory"))
    # 6 held-out examples are 3 micro-batches of loss; then come the batches of answers: the fifth visit.
    assert Crew(start, stormy, 1, die_at="VAL_BATCH_FORWARD", visit=5).bury()
    assert Crew(start, stormy, 2, die_at="VAL_BATCH_END", visit=4).bury()
    assert Crew(start, stormy, 2).end() == [0, 0], support.log_of(stormy)
    assert support.tensors(stormy) == support.tensors(calm)
    assert evaluated(stormy) == evaluated(calm)
    assert storm.outcome(stormy) == storm.outcome(calm)


def test_the_best_checkpoint_and_early_stopping_follow_the_metric_chosen(
    make_run: MakeRun, train: Train
) -> None:
    best = answers({"name": "length", "expression": {"expression": "answer | length"}}, best_metric="length")
    job = support.spec(
        **{**COURSE, "max_steps": "30", "eval_every_steps": "2", "keep_checkpoints": 0},
        **best,
        keep_best_checkpoints=1,
        early_stopping_patience=3,
        max_checkpoint_overhead=1.0,
    )
    run = make_run(job)
    assert train(run) == 0, support.log_of(run)
    found = evaluated(run)
    lengths = {step: values["eval/length"] for step, values in found.items()}
    top = max(lengths.values())
    first_best = min(step for step, value in lengths.items() if value == top)
    kept = {int(path.name.removeprefix("step-")) for path in support.checkpoints(run)}
    assert first_best in kept, (lengths, kept)
    assert writer.judged(run / "checkpoints" / f"step-{first_best:08d}") == -top
    worse = [step for step in lengths if step > first_best]
    assert len(worse) == 3, "three evaluations without improvement end the run"
    assert support.status(run)["stopped_early"]


def test_a_fork_by_another_metric_compares_nothing_with_the_old_one(make_run: MakeRun, train: Train) -> None:
    course = {**COURSE, "max_steps": "60", "early_stopping_patience": 2, "early_stopping_min_delta": 100.0}
    run = make_run(support.spec(**course))
    assert train(run) == 0, support.log_of(run)
    assert (support.status(run)["stopped_early"], support.status(run)["step"]) == (True, 9)
    last = support.checkpoint_of(run / "checkpoints" / "step-00000009", 9)
    best = answers({"name": "length", "expression": {"expression": "answer | length"}}, best_metric="length")
    forked = make_run(support.spec(**course, **best), "forked", checkpoint=last, forked=True)
    assert train(forked) == 0, support.log_of(forked)
    found = evaluated(forked)
    assert sorted(found) == [12, 15, 18], "its first evaluation is the best so far, then its patience counts"
    kept = {path.name: writer.judged(path) for path in support.checkpoints(forked)}
    assert kept["step-00000018"] == -found[18]["eval/length"]


SCHEMA = {
    "type": "object",
    "required": ["n"],
    "properties": {"n": {"$ref": "#/$defs/count"}},
    "$defs": {"count": {"type": "integer", "minimum": 0}},
}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (answers({"perplexity": {}}), "SCORER_UNKNOWN"),
        (answers({"exact_match": {}}, best_metric="bleu"), "METRIC_UNKNOWN"),
        (answers({"exact_match": {}}, {"exact_match": {}}), "SCORER_TWICE"),
        (answers({"json": {"schema": '{"$ref": "http://127.0.0.1:9/x.json"}'}}), "FIELD_INVALID"),
        (answers({"json": {"schema": '{"$ref": "file:///etc/passwd"}'}}), "FIELD_INVALID"),
        (answers({"json": {"schema": '{"type": "nothing"}'}}), "FIELD_INVALID"),
    ],
)
def test_what_cannot_judge_in_training_is_refused(
    make_run: MakeRun, train: Train, fields: dict[str, Any], reason: str
) -> None:
    run = make_run(support.spec(**COURSE, **fields))
    assert train(run) != 0
    assert support.status(run)["finished"]["reason"] == reason


def test_a_json_answer_follows_a_schema_or_is_told_what_is_wrong() -> None:
    from tunesmith_trainer.data import Row
    from tunesmith_trainer.evaluation.plan import scorer_of
    from tunesmith_trainer.evaluation.questions import Question
    from tunesmith_trainer.evaluation.sandbox import Sandbox
    from tunesmith_trainer.evaluation.scorers import _json
    from tunesmith_trainer.fields import Fields

    box = Sandbox()
    plan = scorer_of(Fields({"json": {"schema": json.dumps(SCHEMA)}}, "scorer"))
    scorer = _json(plan, box)
    question = Question(Row(1, (), ""), ({"role": "user", "content": "how many?"},), None)
    try:
        for answer, value, note in (
            ('{"n": 3}', 1.0, ""),
            ('{"n": -1}', 0.0, "$.n: -1 is less than the minimum of 0"),
            ('{"n": "3"}', 0.0, "$.n: '3' is not of type 'integer'"),
            ("{}", 0.0, "$: 'n' is a required property"),
            ("3", 0.0, "$: 3 is not of type 'object'"),
            ("no JSON", 0.0, ""),
            ('{"n": NaN}', 0.0, ""),
            ("[" * 100_000, 0.0, ""),
        ):
            found = scorer.judge(question, answer)
            assert (found.scores["json"], found.notes.get("json", "")) == (value, note), answer[:20]
    finally:
        box.close()
