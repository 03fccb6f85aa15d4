"""Points and curves: what everything that reads metrics hands on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Points:
    """Points of one key, in no order; all arrays have shape (n,)."""

    steps: Ints
    times_us: Ints
    values: Floats
    seqs: Ints


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one key, one a step, steps ascending; all arrays have shape (n,).

    `epochs` and `ranks` tell who logged each point: they decide which point of a step counts, and where one
    attempt ends and the next begins.
    """

    steps: Ints
    times_us: Ints
    values: Floats
    epochs: Ints
    ranks: Ints


def extremes(curve: Curve) -> tuple[float, float]:
    """Smallest and largest value, NaN left out; NaN when there is nothing else."""
    return float(np.fmin.reduce(curve.values)), float(np.fmax.reduce(curve.values))
