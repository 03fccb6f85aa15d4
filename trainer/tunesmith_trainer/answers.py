"""Answers to held-out examples in training, judged by scorers: what the held-out loss does not tell.

It draws nothing that training draws, and leaves no state: an evaluation that is cut off answers anew, to the
same bits, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith_trainer.data import Example, Row
from tunesmith_trainer.evaluation.generation import Answer, generate
from tunesmith_trainer.evaluation.plan import Generation, ScorerPlan, generation_of, scorer_of
from tunesmith_trainer.evaluation.questions import Question
from tunesmith_trainer.evaluation.sandbox import Sandbox
from tunesmith_trainer.evaluation.scorers import TextScorer, text_scorers
from tunesmith_trainer.evaluation.verdict import Aggregate, Metric, Verdict
from tunesmith_trainer.failure import invalid_input
from tunesmith_trainer.fields import Fields
from tunesmith_trainer.group import Group
from tunesmith_trainer.model import Model
from tunesmith_trainer.phase import Phase
from tunesmith_trainer.run import Run
from tunesmith_trainer.state import WORST

LOSS = "eval/loss"
KINDS = ("exact_match", "token_f1", "rouge", "bleu", "chrf", "json", "regex", "expression")
Exchange = Callable[[torch.Tensor], list[float]]


@dataclass(frozen=True, slots=True)
class AnswersPlan:
    """Names and meanings are those of AnswersSpec in evaluation.proto."""

    scorers: tuple[ScorerPlan, ...]
    generation: Generation
    max_rows: int
    batch_size: int
    best: str


def plan_of(run: Run) -> AnswersPlan | None:
    """What the spec asks for; None: nothing.

    Raises TrainerError, class INVALID_INPUT, for scorers that cannot judge answers in training.
    """
    fields = Fields(run.raw_spec, "run.json.spec").part("training").part("answers")
    scorers = tuple(scorer_of(part) for part in fields.parts("scorers"))
    if not scorers:
        return None
    for plan in scorers:
        if plan.kind not in KINDS:
            raise invalid_input(
                "SCORER_UNKNOWN", f"{plan.kind} does not judge answers in training", f"use {', '.join(KINDS)}"
            )
    return AnswersPlan(
        scorers=scorers,
        generation=generation_of(fields.part("generation"), 64),
        max_rows=fields.integer("max_rows") or 32,
        batch_size=fields.integer("batch_size") or 8,
        best=fields.text("best_metric"),
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A held-out example as a question: its tokens before the last span that is learnt."""

    question: Question
    tokens: list[int]


def asked(examples: Sequence[Example], tokenizer: Any, most: int) -> list[Asked]:
    """The first `most` held-out examples that ask something; a plain text is learnt from its beginning."""
    found = []
    for index, example in enumerate(examples):
        gaps = np.flatnonzero(np.diff(example.positions) > 1)
        first = int(example.positions[gaps[-1] + 1 if len(gaps) else 0]) + 1
        if first < 2:
            continue
        prompt = example.tokens[:first].tolist()
        parts = (prompt, example.tokens[first:])
        last, reference = (str(tokenizer.decode(p, skip_special_tokens=True)).strip() for p in parts)
        row = Row(index, (), "")
        found.append(Asked(Question(row, ({"role": "user", "content": last},), reference), prompt))
        if len(found) == most:
            break
    return found


class Answers:
    """The scorers of one run, ready to judge."""

    def __init__(self, run: Run, plan: AnswersPlan, model: Model, group: Group, held_out: Sequence[Example]):
        self._plan, self._model, self._group = plan, model, group
        self._box = Sandbox()
        self._scorers: list[TextScorer] = text_scorers(plan.scorers, run, self._box)
        self._metrics = {metric.name: metric for scorer in self._scorers for metric in scorer.metrics}
        self._asked = asked(held_out, model.tokenizer, plan.max_rows)
        if not self._asked:
            raise invalid_input(
                "NOTHING_TO_SCORE",
                "no held-out example has a prompt with a wanted answer",
                "give rows of messages, or leave training.answers out",
            )
        if plan.best and plan.best not in self._metrics:
            raise invalid_input(
                "METRIC_UNKNOWN",
                f"no scorer of training.answers gives {plan.best}",
                f"use one of {', '.join(self._metrics)}, or leave best_metric out: the loss decides then",
            )

    def judge(self, enter: Callable[[Phase], None], exchange: Exchange) -> dict[str, float]:
        """Values of all metrics that have one. Each rank answers its share; all get the same values."""
        module = self._model.module
        size, world = self._plan.batch_size, self._group.world_size
        batches = [self._asked[at : at + size] for at in range(0, len(self._asked), size)]
        own: list[tuple[int, list[Verdict]]] = []
        module.eval()
        try:
            for first in range(0, len(batches), world):
                enter(Phase.VAL_BATCH_FORWARD)
                number = first + self._group.rank
                if number < len(batches):
                    own.append((number, self._judged(number, batches[number])))
                exchange(torch.zeros((), device=self._model.device))  # whether to stop is agreed by the way
                enter(Phase.VAL_BATCH_END)
        finally:
            module.train()
            self._box.close()
        return self._values(own)

    def _judged(self, number: int, batch: Sequence[Asked]) -> list[Verdict]:
        model = self._model
        with torch.random.fork_rng(range(torch.cuda.device_count())), model.autocast():
            answers = generate(model, [item.tokens for item in batch], self._plan.generation, number)
        return [_verdict(self._scorers, item, given) for item, given in zip(batch, answers, strict=True)]

    def _values(self, own: Sequence[tuple[int, list[Verdict]]]) -> dict[str, float]:
        mine = [[number, [[v.scores, v.stats] for v in verdicts]] for number, verdicts in own]
        # In the order of the batches, so that sums do not depend on who answered.
        every = dict(item for rank in self._group.collect(mine) for item in rank)
        rows = [row for number in sorted(every) for row in every[number]]
        found = ((name, _value(metric, rows)) for name, metric in self._metrics.items())
        return {name: value for name, value in found if value is not None}

    def figure(self, loss: float, values: Mapping[str, float]) -> float:
        """What the best checkpoint and early stopping go by; smaller is better."""
        best = self._plan.best
        if not best:
            return loss
        value = values.get(best)
        if value is None:
            return WORST
        return -value if self._metrics[best].higher_is_better else value

    @property
    def best(self) -> str:
        """The metric that decides which checkpoint is best."""
        return f"eval/{self._plan.best}" if self._plan.best else LOSS


def _verdict(scorers: Sequence[TextScorer], item: Asked, answer: Answer) -> Verdict:
    verdicts = [scorer.judge(item.question, answer.text) for scorer in scorers]
    scores = {name: value for verdict in verdicts for name, value in verdict.scores.items()}
    return Verdict(scores, {name: stats for verdict in verdicts for name, stats in verdict.stats.items()})


def _value(metric: Metric, rows: Sequence[Any]) -> float | None:
    judged = [(scores, stats) for scores, stats in rows if metric.name in scores]
    if not judged:
        return None
    if metric.aggregate is not Aggregate.BLEU:
        return float(sum(scores[metric.name] for scores, _ in judged) / len(judged))
    from sacrebleu.metrics.bleu import BLEU

    sums = [int(sum(parts)) for parts in zip(*(stats[metric.name] for _, stats in judged), strict=True)]
    correct, total, (ours, theirs) = sums[:4], sums[4:8], sums[8:]
    return float(BLEU.compute_bleu(correct, total, ours, theirs, smooth_method="exp").score)
