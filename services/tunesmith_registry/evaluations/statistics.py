"""Rows become numbers: values with confidence intervals, and targets compared row by row.

Every interval is a percentile bootstrap over rows (Efron 1979) with a fixed seed: rows are drawn with
replacement, the metric is computed anew from the summed statistics of those drawn. Pairs are drawn together,
so that what both targets find hard does not blur their difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.api.registry.v1 import evaluations_pb2 as pb
from tunesmith_registry.evaluations.samples import Metric, Numbers

_DRAWS = 1000
_LEAST_DRAWS = 200
_MOST_WORK = 20_000_000
_SEED = 20_130_402
_INTERVAL = (2.5, 97.5)
_MOST_LOSS = 700.0
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Side:
    """One target in one metric: values (rows,), statistics (rows, width), and where all rows have a value the
    sums of the rows drawn, (draws, width)."""

    values: Numbers
    stats: Numbers
    drawn: Numbers | None = None


def sides(values: Numbers, stats: Numbers) -> list[Side]:
    """The targets of one metric; values (targets, rows), stats (targets, rows, width)."""
    num_targets, num_rows, width = stats.shape
    if not np.isfinite(values).all():
        return [Side(*pair) for pair in zip(values, stats, strict=True)]
    drawn = _drawn(stats.swapaxes(0, 1).reshape(num_rows, num_targets * width))
    return [Side(values[at], stats[at], drawn[:, at * width : (at + 1) * width]) for at in range(num_targets)]


def score(metric: Metric, side: Side) -> tuple[float, float, float, int] | None:
    """Value, interval and number of rows; None when no row has a value."""
    counted = np.isfinite(side.values)
    if not counted.any():
        return None
    kept = side.stats[counted]
    low, high = np.percentile(
        _aggregate(metric, _drawn(kept) if side.drawn is None else side.drawn), _INTERVAL
    )
    value = float(_aggregate(metric, kept.sum(axis=0)[None])[0])
    return value, float(low), float(high), int(counted.sum())


def compare(metric: Metric, first: Side, other: Side) -> pb.TargetComparison | None:
    """`other` less `first` on the rows that both have; None when there is none."""
    both = np.isfinite(first.values) & np.isfinite(other.values)
    if not both.any():
        return None
    ours, theirs = first.stats[both], other.stats[both]
    if first.drawn is not None and other.drawn is not None:
        drawn = first.drawn, other.drawn
    else:
        pairs = _drawn(np.concatenate([ours, theirs], axis=1))
        drawn = pairs[:, : ours.shape[1]], pairs[:, ours.shape[1] :]
    difference = _aggregate(metric, theirs.sum(axis=0)[None]) - _aggregate(metric, ours.sum(axis=0)[None])
    low, high = np.percentile(_aggregate(metric, drawn[1]) - _aggregate(metric, drawn[0]), _INTERVAL)
    gain = other.values[both] - first.values[both]
    gain = gain if metric.higher_is_better else -gain
    wins, losses = int((gain > _TINY).sum()), int((gain < -_TINY).sum())
    return pb.TargetComparison(
        metric=metric.name,
        difference=float(difference[0]),
        ci_low=float(low),
        ci_high=float(high),
        wins=wins,
        ties=int(both.sum()) - wins - losses,
        losses=losses,
        num_samples=int(both.sum()),
        higher_is_better=metric.higher_is_better,
    )


def compared(metrics: Sequence[Metric], found: Mapping[str, Sequence[Side]]) -> list[pb.TargetComparison]:
    """Each target beside the first one, by target, then by metric."""
    num_targets = len(next(iter(found.values()))) if found else 0
    made = []
    for target in range(1, num_targets):
        for metric in metrics:
            comparison = compare(metric, found[metric.name][0], found[metric.name][target])
            if comparison is not None:
                comparison.target_index = target
                made.append(comparison)
    return made


def _drawn(stats: Numbers) -> Numbers:
    """Sums over rows drawn with replacement, (draws, width)."""
    rows = len(stats)
    draws = int(np.clip(_MOST_WORK // rows, _LEAST_DRAWS, _DRAWS))
    generator = np.random.Generator(np.random.PCG64(_SEED))
    sums = np.empty((draws, stats.shape[1]))
    for at in range(draws):
        # Counting drawn rows takes a tenth of the time of drawing counts (multinomial).
        sums[at] = np.bincount(generator.integers(0, rows, rows), minlength=rows) @ stats
    return sums


def _aggregate(metric: Metric, sums: Numbers) -> Numbers:
    """The metric of each row of sums, (n, width) to (n,)."""
    if metric.aggregate == "bleu":
        return _bleu(sums)
    means = sums[:, 0] / np.maximum(sums[:, 1], _TINY)
    return np.exp(np.minimum(means, _MOST_LOSS)) if metric.aggregate == "perplexity" else means


def _bleu(sums: Numbers) -> Numbers:
    """BLEU of a set (Papineni 2002) with the exponential smoothing of sacrebleu: an order without a match
    counts as half of a match, the next such one as a quarter, and so on; 0 without any match of words."""
    counts, totals, answers, references = sums[:, :4], sums[:, 4:8], sums[:, 8], sums[:, 9]
    empty = (counts == 0) & (totals > 0)
    smoothed = np.where(empty, 0.5 ** np.cumsum(empty, axis=1), counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(smoothed / totals)
        brevity = np.where(answers < references, 1 - references / answers, 0.0)
        scores = 100 * np.exp(brevity + logs.mean(axis=1))
    return np.where((counts[:, 0] == 0) | (totals == 0).any(axis=1), 0.0, np.nan_to_num(scores))
