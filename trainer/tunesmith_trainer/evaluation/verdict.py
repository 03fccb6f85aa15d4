"""What a scorer says of one row, and how the rows of a metric become one number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Aggregate(StrEnum):
    """How a metric's value follows from sums over rows of its statistics.

    MEAN: of (value, 1), first by second. PERPLEXITY: of (loss in nats, tokens), e to the first by the second.
    BLEU: of four counts of matched n-grams, four totals, length of answers and of references.
    """

    MEAN = "mean"
    PERPLEXITY = "perplexity"
    BLEU = "bleu"


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that an evaluation gives."""

    name: str
    aggregate: Aggregate = Aggregate.MEAN
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one row and one scorer: values, statistics where the mean is not meant, and words, all by metric."""

    scores: Mapping[str, float] = field(default_factory=dict)
    stats: Mapping[str, list[float]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
