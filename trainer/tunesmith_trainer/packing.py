"""Packing: several examples share one row of `max_length` tokens, and none sees another."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import torch

from tunesmith_trainer.data import Item, Packed


def plan(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit, longest first: indices of the examples of each row, a pure function of the lengths.

    Each example goes into the fullest row that has room for it. O(n log n) but for the insertions.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), by room
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        need = lengths[index]
        at = bisect_left(open_rows, (need, -1))
        if at == len(open_rows):
            rows.append([])
            room, row = max(capacity, need), len(rows) - 1
        else:
            room, row = open_rows.pop(at)
        rows[row].append(index)
        if room > need:
            insort(open_rows, (room - need, row))
    return rows


def join(items: Sequence[Item]) -> Item:
    """One row of several examples, in their order."""
    if len(items) == 1:
        return items[0]
    starts = np.cumsum([0, *(len(item.inputs) for item in items[:-1])]).tolist()
    return Packed(
        np.concatenate([item.inputs for item in items]),
        np.concatenate([start + item.positions for start, item in zip(starts, items, strict=True)]),
        np.concatenate([item.targets for item in items]),
        tuple(starts),
    )


def position_ids(items: Sequence[Item], width: int) -> torch.Tensor | None:
    """(rows, width): positions that begin anew with each example; None when no row holds more than one.

    Padding goes on counting from the last example, which is before it and so cannot see it.
    """
    if all(len(item.starts) == 1 for item in items):
        return None
    places = np.empty((len(items), width), dtype=np.int64)
    for row, item in enumerate(items):
        for start, end in zip(item.starts, (*item.starts[1:], width), strict=True):
            places[row, start:end] = np.arange(end - start)
    return torch.from_numpy(places)
