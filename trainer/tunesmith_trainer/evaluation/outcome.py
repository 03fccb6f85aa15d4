"""What an evaluation leaves: running means for the curves, and the artifact that the registry enters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tunesmith_trainer import artifact
from tunesmith_trainer.evaluation.judge import JudgeScorer
from tunesmith_trainer.evaluation.ledger import Judged
from tunesmith_trainer.evaluation.likelihood import Likelihood
from tunesmith_trainer.evaluation.questions import Question
from tunesmith_trainer.evaluation.scorers import TextScorer
from tunesmith_trainer.evaluation.verdict import Aggregate, Metric, Verdict
from tunesmith_trainer.report import Reporter, log
from tunesmith_trainer.run import Run

SAMPLES, METRICS = "samples.jsonl", "metrics.json"
_MOST_LOSS = 700.0  # e to a larger one is no finite number
_TEXT = 20_000  # characters of a prompt or an answer that are kept for people


def perplexity(name: str, found: Likelihood | None) -> Verdict:
    """The perplexity of one row."""
    if found is None:
        return Verdict()
    value = math.exp(min(found.loss / found.num_tokens, _MOST_LOSS))
    return Verdict({name: value}, {name: [found.loss, float(found.num_tokens)]})


def is_remote(scorer: TextScorer) -> bool:
    """Whether it waits for others instead of computing."""
    return isinstance(scorer, JudgeScorer)


class Means:
    """Running values of each metric and target, for curves. Of BLEU the mean over rows, until the end."""

    def __init__(self, metrics: Sequence[Metric], num_targets: int) -> None:
        self._metrics, self._several = metrics, num_targets > 1
        self._sums: dict[tuple[str, int], tuple[float, float]] = {}
        self._newest = 0

    def add(self, judged: Iterable[Judged]) -> None:
        """Counts rows."""
        for item in judged:
            self._newest = item.target
            for metric in self._metrics:
                if metric.name not in item.scores:
                    continue
                value, weight = item.scores[metric.name], 1.0
                if metric.aggregate is Aggregate.PERPLEXITY:
                    value, weight = item.stats[metric.name]
                total, count = self._sums.get((metric.name, item.target), (0.0, 0.0))
                self._sums[metric.name, item.target] = total + value, count + weight

    def read(self) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """Keys and values of the target at work."""
        keys, values = [], []
        for metric in self._metrics:
            total, count = self._sums.get((metric.name, self._newest), (0.0, 0.0))
            if count:
                mean = total / count
                suffix = f"/{self._newest}" if self._several else ""
                keys.append(f"evaluation/{metric.name}{suffix}")
                values.append(
                    math.exp(min(mean, _MOST_LOSS)) if metric.aggregate is Aggregate.PERPLEXITY else mean
                )
        return tuple(keys), tuple(values)

    def shown(self) -> str:
        """The same for a line of the log."""
        return " ".join(f"{key} {value:.4g}" for key, value in zip(*self.read(), strict=True))


def write(
    run: Run,
    metrics: Sequence[Metric],
    questions: Sequence[Question],
    judged: Mapping[tuple[int, int], Judged],
    events: Reporter,
) -> None:
    """Writes `output/`. Equal evaluations give equal bytes, so the same digest on every node."""
    _warn(metrics, judged, events)
    properties = {
        **({"prompt_template_digest": run.prompt_template.digest} if run.prompt_template else {}),
        "base_model_digest": run.base_model.digest,
        "dataset_digest": run.dataset.digest,
        "num_rows": str(len(questions)),
        "num_targets": str(len(run.targets)),
        "spec_digest": run.spec_digest,
    }

    def fill(folder: Path) -> None:
        said = {
            "version": 1,
            "metrics": [asdict(metric) for metric in metrics],
            "targets": [
                {"name": target.name, "digest": target.source.digest if target.source else ""}
                for target in run.targets
            ],
        }
        (folder / METRICS).write_bytes(artifact.canonical_json(said))
        with (folder / SAMPLES).open("wb") as file:
            for question in questions:
                answers = [judged[index, question.row.line] for index in range(len(run.targets))]
                file.write(artifact.canonical_json(_sample(question, answers)) + b"\n")

    artifact.write(run.folder / "output", "evaluation", properties, fill)


def _sample(question: Question, answers: Sequence[Judged]) -> dict[str, object]:
    return {
        "row": question.row.line,
        "prompt": [{**each, "content": _short(each["content"])} for each in question.prompt],
        "reference": None if question.reference is None else _short(question.reference),
        "answers": [
            {
                "text": _short(item.text),
                "num_tokens": item.num_tokens,
                "scores": item.scores,
                "stats": item.stats,
                "notes": item.notes,
            }
            for item in answers
        ],
    }


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else text[:_TEXT] + "…"


def _warn(metrics: Sequence[Metric], judged: Mapping[tuple[int, int], Judged], events: Reporter) -> None:
    for metric in metrics:
        lacking = [item for item in judged.values() if metric.name not in item.scores]
        if lacking:
            why = next((item.notes[metric.name] for item in lacking if metric.name in item.notes), "")
            because = f", for example: {why[:200]}" if why else ""
            log(
                events,
                "warning",
                f"{metric.name} has no value for {len(lacking):,} of {len(judged):,} answers{because}",
            )
