"""Curves as pictures of braille dots, two across and four up in each character."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunesmith.metrics import Series

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLANK = 0x2800
_LABEL = 10  # characters left of the axis


def plot(curve: Series, width: int, height: int, axis: str) -> list[str]:
    """Returns the lines of a picture of a curve, `width` characters wide; `axis` is what stands below it.

    Of a reduced curve each bucket is a stroke from its smallest to its largest value. NaN and infinities
    leave a gap.
    """
    columns = max(10, width - _LABEL - 2)
    xs = [float(x) for x in (curve.places if len(curve.places) else curve.steps)]
    reduced = len(curve.min_values) > 0
    lows = [float(y) for y in (curve.min_values if reduced else curve.values)]
    highs = [float(y) for y in (curve.max_values if reduced else curve.values)]
    finite = [y for y in (*lows, *highs) if math.isfinite(y)]
    if not finite:
        return [f"{curve.key}: no finite value"]
    bottom, top = min(finite), max(finite)
    canvas = _Canvas(columns, height, (xs[0], xs[-1]), (bottom, top))
    before: tuple[float, float] | None = None
    for x, low, high, y in zip(xs, lows, highs, curve.values, strict=True):
        if not (math.isfinite(low) and math.isfinite(high)):
            before = None
            continue
        if before is not None and math.isfinite(y):
            canvas.line(before, (x, float(y)))
        canvas.line((x, low), (x, high))
        before = (x, float(y)) if math.isfinite(y) else None
    labels = {0: top, height // 2: (top + bottom) / 2, height - 1: bottom}
    lines = [curve.key]
    for row, cells in enumerate(canvas.rows()):
        label = f"{labels[row]:.4g}" if row in labels else ""
        lines.append(f"{label:>{_LABEL}} ┤{cells}")
    first, last = f"{xs[0]:.6g}", f"{xs[-1]:.6g} {axis}"
    lines.append(" " * (_LABEL + 2) + first + last.rjust(max(1, columns - len(first))))
    return lines


class _Canvas:
    """Dots on a grid of characters."""

    def __init__(
        self, columns: int, height: int, across: tuple[float, float], up: tuple[float, float]
    ) -> None:
        self._columns, self._height = columns, height
        self._across, self._up = across, up
        self._cells = [[0] * columns for _ in range(height)]

    def line(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draws from one point to another."""
        (x0, y0), (x1, y1) = self._dot(start), self._dot(end)
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for step in range(steps + 1):
            self._set(x0 + round((x1 - x0) * step / steps), y0 + round((y1 - y0) * step / steps))

    def _dot(self, point: tuple[float, float]) -> tuple[int, int]:
        x = _part(point[0], *self._across) * (2 * self._columns - 1)
        y = (1 - _part(point[1], *self._up)) * (4 * self._height - 1)
        return round(x), round(y)

    def _set(self, x: int, y: int) -> None:
        self._cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]

    def rows(self) -> Sequence[str]:
        """Returns the characters of each row, the top one first."""
        return ["".join(chr(_BLANK + cell) for cell in row) for row in self._cells]


def _part(value: float, low: float, high: float) -> float:
    """Where a value lies between two others, from 0 to 1; half way when they are equal."""
    if high <= low:
        return 0.5
    # Halves first: the difference of two large numbers may be infinite.
    return min(1.0, max(0.0, (value / 2 - low / 2) / (high / 2 - low / 2)))
