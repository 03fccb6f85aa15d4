"""Scorers of answers: what each says of one row, and how rows become one number.

A metric's value over rows is a function of sums over rows (`Aggregate`), so that the registry can resample
rows for confidence intervals without asking the scorer again.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunesmith_trainer.evaluation.judge import JudgeScorer
from tunesmith_trainer.evaluation.plan import ScorerPlan
from tunesmith_trainer.evaluation.questions import Question
from tunesmith_trainer.evaluation.sandbox import Sandbox
from tunesmith_trainer.evaluation.verdict import Aggregate, Metric, Verdict
from tunesmith_trainer.failure import invalid_input
from tunesmith_trainer.run import Run

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ROUGE = ("rouge1", "rouge2", "rougeL")


class TextScorer(Protocol):
    """Judges the text of an answer."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """What it gives."""
        ...

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the wanted answer."""
        ...

    def judge(self, question: Question, answer: str) -> Verdict:
        """What it says of one answer; called only with a reference when it needs one."""
        ...


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space, as SQuAD's evaluation has it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


@dataclass(frozen=True, slots=True)
class Mean:
    """A scorer that gives one number a row, of which the mean counts."""

    metrics: Sequence[Metric]
    needs_reference: bool
    value: Any

    def judge(self, question: Question, answer: str) -> Verdict:
        """The one number."""
        return Verdict({self.metrics[0].name: float(self.value(question, answer))})


def _exact(plan: ScorerPlan) -> TextScorer:
    form = str.strip if plan.fields.flag("strict") else normalise
    return _mean(plan, lambda question, answer: form(answer) == form(question.reference))


def _token_f1(plan: ScorerPlan) -> TextScorer:
    def value(question: Question, answer: str) -> float:
        ours, theirs = normalise(answer).split(), normalise(question.reference or "").split()
        shared = sum((Counter(ours) & Counter(theirs)).values())
        if not shared:
            return float(ours == theirs)
        return 2 * shared / (len(ours) + len(theirs))

    return _mean(plan, value)


def _chrf(plan: ScorerPlan) -> TextScorer:
    from sacrebleu.metrics.chrf import CHRF

    chrf = CHRF()
    return _mean(plan, lambda question, answer: chrf.sentence_score(answer, [question.reference]).score)


@dataclass(slots=True)
class Json:
    """Whether an answer is JSON, has the keys wanted, and follows a schema; that is looked at apart."""

    metrics: Sequence[Metric]
    keys: Sequence[str]
    schema: str
    box: Sandbox
    needs_reference: bool = False

    def judge(self, question: Question, answer: str) -> Verdict:
        """1 or 0, and what is wrong when the schema is not followed."""
        name = self.metrics[0].name
        try:
            found = json.loads(answer, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return Verdict({name: 0.0})
        if self.keys and not (isinstance(found, dict) and all(key in found for key in self.keys)):
            return Verdict({name: 0.0})
        if not self.schema:
            return Verdict({name: 1.0})
        told = self.box.ask({"schema": self.schema, "instance": answer})
        wrong = str(told.get("error") or told.get("wrong") or "")
        return Verdict({name: float(not wrong)}, notes={name: wrong} if wrong else {})


def _json(plan: ScorerPlan, box: Sandbox) -> TextScorer:
    schema = plan.fields.text("schema")
    if schema:
        told = box.ask({"schema": schema})
        if "error" in told:
            raise plan.fields.error("schema", schema[:200], f"write a JSON schema: {told['error']}")
    return Json((Metric(plan.name),), plan.fields.texts("required_keys"), schema, box)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _mean(plan: ScorerPlan, value: Any, *, needs_reference: bool = True) -> TextScorer:
    return Mean((Metric(plan.name),), needs_reference, value)


@dataclass(slots=True)
class Sandboxed:
    """A regular expression or an expression, computed apart; what fails counts as no match or as nothing."""

    metrics: Sequence[Metric]
    request: Mapping[str, Any]
    on_error: float | None
    box: Sandbox
    needs_reference: bool = False

    def judge(self, question: Question, answer: str) -> Verdict:
        """The number, or a note that says why there is none."""
        name = self.metrics[0].name
        if "pattern" in self.request:
            answered = self.box.ask({**self.request, "text": answer})
        else:
            values = {"answer": answer, "reference": question.reference or "", "prompt": question.last}
            answered = self.box.ask({**self.request, "values": values})
        if "value" in answered:
            return Verdict({name: float(answered["value"])})
        scores = {} if self.on_error is None else {name: self.on_error}
        return Verdict(scores, notes={name: str(answered["error"])})


def _regex(plan: ScorerPlan, box: Sandbox) -> TextScorer:
    pattern = plan.fields.text("pattern", required=True)
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise plan.fields.error(
            "pattern", pattern, f"write a regular expression of Python: {error}"
        ) from error
    request = {"pattern": pattern, "full": plan.fields.flag("full")}
    return Sandboxed((Metric(plan.name),), request, 0.0, box)


def _expression(plan: ScorerPlan, box: Sandbox) -> TextScorer:
    expression = plan.fields.text("expression", required=True)
    tried = box.ask({"expression": expression, "values": {"answer": "a", "reference": "b", "prompt": "c"}})
    if "TemplateSyntaxError" in tried.get("error", "") or "UndefinedError" in tried.get("error", ""):
        raise plan.fields.error("expression", expression, f"write a Jinja expression: {tried['error']}")
    metric = Metric(plan.name, higher_is_better=not plan.fields.flag("lower_is_better"))
    return Sandboxed((metric,), {"expression": expression}, None, box)


@dataclass(slots=True)
class Rouge:
    """ROUGE-1, -2 and -L, F measures with stemming, by rouge-score."""

    plan: ScorerPlan
    needs_reference: bool = True
    metrics: Sequence[Metric] = field(init=False)
    _scorer: Any = field(init=False)

    def __post_init__(self) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        prefix = "" if self.plan.name == "rouge" else f"{self.plan.name}."
        self.metrics = tuple(Metric(prefix + name) for name in _ROUGE)
        self._scorer = RougeScorer(list(_ROUGE), use_stemmer=True)

    def judge(self, question: Question, answer: str) -> Verdict:
        """The three F measures."""
        found = self._scorer.score(question.reference or "", answer)
        pairs = zip(self.metrics, _ROUGE, strict=True)
        return Verdict({metric.name: float(found[name].fmeasure) for metric, name in pairs})


@dataclass(slots=True)
class Bleu:
    """BLEU: of a row its own, smoothed; over rows that of the whole set, from summed counts."""

    plan: ScorerPlan
    needs_reference: bool = True
    metrics: Sequence[Metric] = field(init=False)
    _scorer: Any = field(init=False)

    def __post_init__(self) -> None:
        from sacrebleu.metrics.bleu import BLEU

        self.metrics = (Metric(self.plan.name, Aggregate.BLEU),)
        self._scorer = BLEU(effective_order=True)

    def judge(self, question: Question, answer: str) -> Verdict:
        """The row's BLEU, and its matched and total n-grams (4 and 4) and lengths (answer, reference)."""
        found = self._scorer.sentence_score(answer, [question.reference])
        name = self.plan.name
        stats = [
            *map(float, found.counts),
            *map(float, found.totals),
            float(found.sys_len),
            float(found.ref_len),
        ]
        return Verdict({name: float(found.score)}, {name: stats})


def text_scorers(plans: Sequence[ScorerPlan], run: Run, box: Sandbox) -> list[TextScorer]:
    """The scorers that judge texts; those of likelihoods are the evaluation's own."""
    makers: dict[str, Any] = {
        "exact_match": _exact,
        "token_f1": _token_f1,
        "rouge": Rouge,
        "bleu": Bleu,
        "chrf": _chrf,
        "json": lambda plan: _json(plan, box),
        "regex": lambda plan: _regex(plan, box),
        "expression": lambda plan: _expression(plan, box),
        "judge": lambda plan: JudgeScorer.of(plan, run.judges),
    }
    found = [makers[plan.kind](plan) for plan in plans if plan.kind in makers]
    names = [metric.name for scorer in found for metric in scorer.metrics]
    names += [plan.name for plan in plans if plan.kind not in makers]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise invalid_input(
            "SCORER_TWICE", f"two scorers give the metric {twice}", "give one of them another name"
        )
    return found
