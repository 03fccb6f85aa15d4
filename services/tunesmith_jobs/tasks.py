"""Jobs that do not train: what an evaluation or an export may ask for, and their defaults."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from tunesmith.api.jobs.v1 import evaluation_pb2
from tunesmith.api.jobs.v1 import spec_pb2 as spec
from tunesmith.errors import InvalidArgument

_LONGEST_REQUEST = timedelta(hours=1)
_IN_TRAINING = ("exact_match", "token_f1", "rouge", "bleu", "chrf", "json", "regex", "expression")
_ROUGE = ("rouge1", "rouge2", "rougeL")


def trains(full: spec.JobSpec) -> bool:
    """Whether a job trains; else it evaluates or exports."""
    return not (full.HasField("evaluation") or full.HasField("export"))


def complete(full: spec.JobSpec) -> None:
    """Fills in the defaults of an evaluation.

    Raises:
        InvalidArgument: the parts of an evaluation or export contradict each other.
    """
    if full.HasField("evaluation") and full.HasField("export"):
        raise _inconsistent("export", "set", "goes with no evaluation", "submit two jobs")
    if full.HasField("export"):
        if full.dataset:
            raise _inconsistent("dataset", full.dataset, "has no effect in an export", "leave it out")
        if full.prompt_template:
            raise _inconsistent(
                "prompt_template", full.prompt_template, "has no effect in an export", "leave it out"
            )
    if full.HasField("evaluation"):
        _complete_evaluation(full.evaluation)
        _check_scorers(full.evaluation)


def check_unused(asked: spec.JobSpec, full: spec.JobSpec, plain: spec.JobSpec) -> None:
    """Refuses what an evaluation or export would ignore; `plain` has the defaults alone.

    A completed spec given again says those defaults, which is no contradiction.
    """
    for name in ("adapter", "training"):
        if asked.HasField(name) and getattr(full, name) != getattr(plain, name):
            raise _inconsistent(
                name,
                "set",
                "has no effect: the job does not train",
                f"leave {name} out, or submit a job that trains",
            )
    if asked.sample_prompts:
        raise _inconsistent(
            "sample_prompts",
            len(asked.sample_prompts),
            "have no effect: the job does not train",
            "leave them out",
        )
    if full.HasField("evaluation") and asked.output.model not in ("", full.experiment):
        raise _inconsistent(
            "output.model", asked.output.model, "has no effect: no model is made", "leave it out"
        )
    if full.resources.num_nodes * full.resources.processes_per_node > 1:
        raise _inconsistent(
            "resources",
            "several processes",
            "are more than one process, which does the work",
            "ask for one GPU at most",
        )


def _complete_evaluation(wanted: evaluation_pb2.EvaluationSpec) -> None:
    wanted.batch_size = wanted.batch_size or 8
    wanted.max_length = wanted.max_length or 1024
    _complete_generation(wanted.generation, 128)
    for scorer in wanted.scorers:
        if scorer.HasField("judge"):
            _complete_judge(scorer.judge)


def _complete_generation(generation: evaluation_pb2.GenerationSpec, max_new_tokens: int) -> None:
    generation.max_new_tokens = generation.max_new_tokens or max_new_tokens
    if not generation.HasField("top_p"):
        generation.top_p = 1.0


def complete_answers(wanted: evaluation_pb2.AnswersSpec) -> None:
    """Fills in the defaults of scorers in training."""
    wanted.max_rows = wanted.max_rows or 32
    wanted.batch_size = wanted.batch_size or 8
    _complete_generation(wanted.generation, 64)


def check_answers(training: spec.TrainingSpec) -> None:
    """Refuses scorers that cannot judge in training, and a best metric that none of them gives.

    Raises:
        InvalidArgument: naming the field.
    """
    wanted, where = training.answers, "training.answers"
    if not training.eval_every_steps:
        raise _inconsistent(
            where, "set", "judges at evaluations", "set training.eval_every_steps and eval_fraction"
        )
    _check_kinds(wanted.scorers, where)
    metrics: list[str] = []
    for index, scorer in enumerate(wanted.scorers):
        kind = scorer.WhichOneof("kind") or ""
        if kind not in _IN_TRAINING:
            raise _inconsistent(
                f"{where}.scorers[{index}]",
                kind,
                "does not judge answers in training",
                f"use one of {', '.join(_IN_TRAINING)}",
            )
        prefix = f"{scorer.name}." if scorer.name not in ("", "rouge") else ""
        metrics += [f"{prefix}{name}" for name in _ROUGE] if kind == "rouge" else [scorer.name or kind]
    if wanted.best_metric and wanted.best_metric not in metrics:
        raise _inconsistent(
            f"{where}.best_metric",
            wanted.best_metric,
            "is given by none of its scorers",
            f"use one of {', '.join(metrics)}, or leave it out: the held-out loss decides then",
        )


def _check_schema(text: str, where: str) -> None:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _inconsistent(where, text, f"is no JSON: {error}", "write the schema as JSON") from error
    if not isinstance(schema, dict):
        raise _inconsistent(where, text, "is no JSON object", 'write for example {"type": "object"}')


def _complete_judge(judge: evaluation_pb2.JudgeScorer) -> None:
    if not judge.HasField("min_score"):
        judge.min_score = 1.0
    if not judge.HasField("max_score"):
        judge.max_score = 10.0
    if not judge.HasField("max_retries"):
        judge.max_retries = 3
    if not judge.HasField("timeout"):
        judge.timeout.seconds = 60


def _check_scorers(wanted: evaluation_pb2.EvaluationSpec) -> None:
    twice = [name for name, count in Counter(wanted.targets).items() if count > 1]
    if twice:
        raise _inconsistent("evaluation.targets", twice[0], "is named twice", "name each target once")
    _check_kinds(wanted.scorers, "evaluation")


def _check_kinds(scorers: Sequence[evaluation_pb2.Scorer], place: str) -> None:
    names: set[str] = set()
    for index, scorer in enumerate(scorers):
        where = f"{place}.scorers[{index}]"
        kind = scorer.WhichOneof("kind")
        if kind is None:
            known = ", ".join(field.name for field in scorer.DESCRIPTOR.oneofs_by_name["kind"].fields)
            raise _inconsistent(where, scorer.name, "has no kind", f"set one of {known}")
        name = scorer.name or kind
        if name in names:
            raise _inconsistent(
                f"{where}.name",
                name,
                "is the name of another scorer too",
                "give each scorer a name of its own",
            )
        names.add(name)
        _check_scorer(scorer, where)


def _check_scorer(scorer: evaluation_pb2.Scorer, where: str) -> None:
    if scorer.HasField("regex"):
        try:
            re.compile(scorer.regex.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise _inconsistent(
                f"{where}.regex.pattern",
                scorer.regex.pattern,
                f"is no regular expression: {error}",
                "write it as Python's re does",
            ) from error
    if scorer.json.schema:
        _check_schema(scorer.json.schema, f"{where}.json.schema")
    if scorer.HasField("judge"):
        judge = scorer.judge
        if judge.min_score >= judge.max_score:
            raise _inconsistent(
                f"{where}.judge.max_score", judge.max_score, "is not above min_score", "give a larger one"
            )
        if not 0 < judge.timeout.seconds + judge.timeout.nanos / 1e9 <= _LONGEST_REQUEST.total_seconds():
            raise _inconsistent(
                f"{where}.judge.timeout",
                judge.timeout.seconds,
                "is not between 0 s and 1 h",
                "give for example 60s",
            )


def _inconsistent(field: str, value: object, problem: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(
        "SPEC_INCONSISTENT", f"spec.{field} {problem}", field=f"spec.{field}", value=value, remedy=remedy
    )
