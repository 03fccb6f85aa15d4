"""What an evaluation is to do: EvaluationSpec of run.json as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith_trainer.failure import invalid_input
from tunesmith_trainer.fields import Fields
from tunesmith_trainer.run import Run

MOST_ROWS = 100_000
KINDS = (
    "perplexity",
    "exact_match",
    "token_f1",
    "rouge",
    "bleu",
    "chrf",
    "json",
    "regex",
    "multiple_choice",
    "judge",
    "expression",
)


@dataclass(frozen=True, slots=True)
class Generation:
    """How answers are made; names and meanings are those of GenerationSpec."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScorerPlan:
    """One scorer: its kind, the name of its metric and its own fields."""

    kind: str
    name: str
    fields: Fields


@dataclass(frozen=True, slots=True)
class Plan:
    """Names and meanings are those of EvaluationSpec."""

    scorers: tuple[ScorerPlan, ...]
    generation: Generation
    max_rows: int
    seed: int
    batch_size: int
    max_length: int
    bfloat16: bool
    num_threads: int


def plan_of(run: Run) -> Plan:
    """Reads the evaluation of a run's spec."""
    spec = Fields(run.raw_spec, "run.json.spec").part("evaluation")
    scorers = tuple(scorer_of(fields) for fields in spec.parts("scorers"))
    if not scorers:
        raise spec.error("scorers", [], "name at least one scorer")
    generation = generation_of(spec.part("generation"), 128)
    return Plan(
        scorers=scorers,
        generation=generation,
        max_rows=min(spec.integer("max_rows") or MOST_ROWS, MOST_ROWS),
        seed=spec.integer("seed"),
        batch_size=spec.integer("batch_size") or 8,
        max_length=spec.integer("max_length") or 1024,
        bfloat16=spec.flag("bfloat16"),
        num_threads=spec.integer("num_threads"),
    )


def generation_of(part: Fields, max_new_tokens: int) -> Generation:
    """Reads how answers are made; `max_new_tokens` is the default."""
    return Generation(
        max_new_tokens=part.integer("max_new_tokens") or max_new_tokens,
        temperature=part.number("temperature"),
        top_p=part.number("top_p", default=1),
        seed=part.integer("seed"),
        stop=part.texts("stop"),
    )


def scorer_of(fields: Fields) -> ScorerPlan:
    """Reads one scorer."""
    kinds = [kind for kind in KINDS if fields.has(kind)]
    if len(kinds) != 1:
        raise invalid_input(
            "SCORER_UNKNOWN",
            "a scorer of the evaluation is of no kind that this trainer knows",
            f"use one of {', '.join(KINDS)}, or a newer trainer on the node",
        )
    return ScorerPlan(kinds[0], fields.text("name") or kinds[0], fields.part(kinds[0]))
