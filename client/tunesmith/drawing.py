"""Curves as SVG: a picture for model cards, with axes and a legend, dark on white wherever it is shown."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 760, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 40, 48
_COLORS = ("#1f5fae", "#c2410c", "#15803d", "#7e22ce")
_TEXT, _AXIS, _GRID = "#1f2937", "#6b7280", "#e5e7eb"
_MOST_POINTS = 800


def _escape(text: str) -> str:
    return html.escape(text, quote=False)


@dataclass(frozen=True)
class _Scale:
    """Maps values onto pixels; `low` and `high` are the ends of the axis."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Returns the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def curves(found: Mapping[str, tuple[Sequence[Any], Sequence[Any]]], title: str, label: str = "loss") -> str:
    """Returns an SVG picture of curves, each given by its steps and values; empty when there is no point.

    Values that are no numbers are left out, and so is what lies far above all but the first few points: a
    loss that begins at 1,000 would hide all that came after.
    """
    points = {key: _finite(*columns) for key, columns in found.items()}
    drawn = {key: pairs for key, pairs in points.items() if pairs}
    if not drawn:
        return ""
    steps = [step for pairs in drawn.values() for step, _ in pairs]
    values = sorted(value for pairs in drawn.values() for _, value in pairs)
    x = _scale(min(steps), max(steps), _LEFT, WIDTH - _RIGHT)
    y = _scale(values[0], _top(values), HEIGHT - _BOTTOM, _TOP)
    parts = [_frame(x, y, title, label)]
    for place, (key, pairs) in enumerate(drawn.items()):
        color = _COLORS[place % len(_COLORS)]
        parts += [_line(pairs, x, y, color), _legend(key, pairs, place, color)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" font-family="system-ui, sans-serif" font-size="12" fill="{_TEXT}">\n'
        f"<title>{_escape(title)}</title>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _finite(steps: Sequence[Any], values: Sequence[Any]) -> list[tuple[float, float]]:
    pairs = [(float(step), float(value)) for step, value in zip(steps, values, strict=True)]
    pairs = [pair for pair in pairs if math.isfinite(pair[1])]
    stride = -(-len(pairs) // _MOST_POINTS)
    return (
        pairs[::stride] + ([pairs[-1]] if stride > 1 and (len(pairs) - 1) % stride else []) if pairs else []
    )


def _top(values: list[float]) -> float:
    """Returns the top of the axis: the largest value, or less when a few tower above the others."""
    most = values[-1 - len(values) // 50]
    return values[-1] if values[-1] <= 4 * most or most <= 0 else 1.5 * most


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    if high == low:
        pad = abs(low) / 10 or 1.0
        return _Scale(low - pad, high + pad, start, end)
    return _Scale(low, high, start, end)


def ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers between two."""
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _frame(x: _Scale, y: _Scale, title: str, label: str) -> str:
    bottom = HEIGHT - _BOTTOM
    lines = [f'<text x="{_LEFT}" y="20" font-size="14" font-weight="600">{_escape(title)}</text>']
    for value in ticks(y.low, y.high):
        place = f"{y.at(value):.1f}"
        lines.append(f'<path d="M{_LEFT} {place}H{WIDTH - _RIGHT}" stroke="{_GRID}"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{place}" text-anchor="end" dy="4">{value:.6g}</text>')
    for value in ticks(x.low, x.high):
        place = f"{x.at(value):.1f}"
        lines.append(f'<path d="M{place} {bottom}v5" stroke="{_AXIS}"/>')
        lines.append(f'<text x="{place}" y="{bottom + 20}" text-anchor="middle">{value:.6g}</text>')
    lines.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{WIDTH - _RIGHT}" stroke="{_AXIS}" fill="none"/>')
    middle = (_LEFT + WIDTH - _RIGHT) // 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">step</text>')
    lines.append(f'<text transform="translate(16 {(_TOP + bottom) // 2}) rotate(-90)" '
                 f'text-anchor="middle">{_escape(label)}</text>')  # fmt: skip
    return "\n".join(lines)


def _line(pairs: list[tuple[float, float]], x: _Scale, y: _Scale, color: str) -> str:
    places = [(x.at(step), max(y.at(value), _TOP)) for step, value in pairs]
    if len(places) == 1:
        return f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3" fill="{color}"/>'
    path = "L".join(f"{across:.1f} {down:.1f}" for across, down in places)
    return f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.8" stroke-linejoin="round"/>'


def _legend(key: str, pairs: list[tuple[float, float]], place: int, color: str) -> str:
    right, down = WIDTH - _RIGHT, 20 + 16 * place
    last = f"{_escape(key)}, last {pairs[-1][1]:.4g}"
    return (
        f'<text x="{right - 26}" y="{down}" text-anchor="end">{last}</text>'
        f'<path d="M{right - 20} {down - 4}h20" stroke="{color}" stroke-width="3"/>'
    )
