"""What a program logs, checked before it is written down: numbers, distributions, texts, lines of a log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tunesmith.errors import InvalidArgument

_MOST_KEYS = 5000
_LONGEST_KEY = 256
_LONGEST_STEP = 2**53
_TEXT_BYTES = 64 * 1024
_MOST_BUCKETS = 512
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns numbers by key as they are written down.

    Raises:
        InvalidArgument: a key or value is none, or there are none or too many.
    """
    clean: dict[str, float] = {}
    for key, value in values.items():
        if type(value) is not float:
            value = _number(key, value)
        if type(key) is not str or not 1 <= len(key) <= _LONGEST_KEY or not key.isprintable():
            raise _no_key("values", key)
        clean[key] = value
    if not 1 <= len(clean) <= _MOST_KEYS:
        raise wrong("values", len(clean), "values are none or too many", f"log 1 to {_MOST_KEYS} at once")
    return clean


def _number(key: str, value: Any) -> float:
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise wrong(f"values[{key}]", value, "is no number", "log numbers, or tensors of one") from None


def step_of(step: Any) -> int:
    """Returns a step as a number. Raises InvalidArgument when it is none."""
    try:
        number = int(step)
    except (TypeError, ValueError, OverflowError):
        raise wrong("step", step, "is no whole number", "count steps from 0") from None
    if not 0 <= number <= _LONGEST_STEP:
        raise wrong("step", step, "is below 0 or too large", "count steps from 0")
    return number


def texts(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns settings by path, such as `optimizer.lr`, as texts."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= texts(value, f"{path}.")
        elif value is not None:
            flat[path] = ("true" if value else "false") if isinstance(value, bool) else str(value)[:2000]
    return flat


def key_of(key: Any) -> str:
    """Returns a key. Raises InvalidArgument when it is none."""
    if type(key) is not str or not 1 <= len(key) <= _LONGEST_KEY or not key.isprintable():
        raise _no_key("key", key)
    return key


def text_of(text: Any) -> str:
    """Returns a text; what goes beyond 64 KiB is cut."""
    data = str(text).encode("utf-8", "replace")
    if len(data) <= _TEXT_BYTES:
        return data.decode()
    return data[: _TEXT_BYTES - 4].decode(errors="ignore") + "…"


def histogram_of(values: Any, buckets: int) -> dict[str, list[Any]]:
    """Returns edges and counts of a distribution: of numbers, in so many buckets of one width; or as they are
    given, a pair of edges and counts.

    Numbers that are not finite are left out.

    Raises:
        InvalidArgument: there are no finite numbers, or edges and counts do not fit.
    """
    if isinstance(values, tuple) and len(values) == 2 and all(hasattr(part, "__len__") for part in values):
        edges, counts = [float(edge) for edge in values[0]], [int(count) for count in values[1]]
        _check_buckets(edges, counts)
        return {"edges": edges, "counts": counts}
    if not 1 <= buckets <= _MOST_BUCKETS:
        raise wrong("buckets", buckets, "are none or too many", f"use 1 to {_MOST_BUCKETS}")
    found = [value for value in _flat(values) if math.isfinite(value)]
    if not found:
        raise wrong("values", values, "hold no finite number", "log at least one")
    low, high = min(found), max(found)
    if not low < high:
        low, high = low - 0.5 * max(1.0, abs(low) * 1e-6), high + 0.5 * max(1.0, abs(high) * 1e-6)
    edges = [low + (high - low) * at / buckets for at in range(buckets)] + [high]
    if not math.isfinite(high - low) or not all(a < b for a, b in pairwise(edges)):
        raise wrong("values", (low, high), "span a range that has no buckets", "give edges and counts")
    counts, scale = [0] * buckets, buckets / (high - low)
    for value in found:
        counts[min(int((value - low) * scale), buckets - 1)] += 1
    return {"edges": edges, "counts": counts}


def _flat(values: Any) -> Iterable[float]:
    if hasattr(values, "detach"):  # a tensor
        values = values.detach().cpu()
    if hasattr(values, "reshape"):
        values = values.reshape(-1)
    if hasattr(values, "tolist"):
        values = values.tolist()
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        raise wrong("values", type(values).__name__, "are no numbers", "log a list or an array") from None


def _check_buckets(edges: Sequence[float], counts: Sequence[int]) -> None:
    if not 1 <= len(counts) <= _MOST_BUCKETS or len(edges) != len(counts) + 1 or min(counts) < 0:
        problem = f"has not 1 to {_MOST_BUCKETS} counts, none below 0, and one edge more"
        raise wrong("values", len(counts), problem, "give (edges, counts)")
    if not all(low < high for low, high in pairwise(edges)):
        raise wrong("values", len(edges), "has edges that do not ascend", "sort them, each once")


def _no_key(field: str, key: object) -> InvalidArgument:
    return wrong(field, key, "is no name of a metric", "use 1 to 256 printable characters")


def wrong(field: str, value: object, problem: str, remedy: str) -> InvalidArgument:
    """Returns the error about something that cannot be logged."""
    return InvalidArgument("FIELD_INVALID", f"{field} {problem}", field=field, value=value, remedy=remedy)
