"""Rows that come twice: exactly, by their hashes; nearly, by MinHash."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

_MOST_PAIRS = 20
_PARTITION_ROWS = 1 << 20
_BATCH_ROWS = 256
NUM_PERM = 64
_BANDS = 16  # of four values each: rows of a similarity of 0.8 are found with 99.9 % certainty
_SEED = 42
NEAR = 0.8
MOST_ROWS = 1_000_000  # 256 MB of signatures

Signatures = npt.NDArray[np.uint32]


def exact(marks: "array[int]", places: "array[int]") -> tuple[int, list[tuple[int, int]]]:
    """How many rows are the same as an earlier one, and the first twenty as (place, place of the earlier).

    `marks` are 64-bit hashes. Memory beside them is that of a part of a million rows.
    """
    if len(marks) < 2:
        return 0, []
    hashes = np.frombuffer(marks, dtype=np.uint64)
    where = np.frombuffer(places, dtype=np.uint64)
    bits = max(0, int(len(marks) // _PARTITION_ROWS).bit_length())
    count, pairs = 0, []
    for part in range(1 << bits):
        indices = np.flatnonzero(_within(hashes, part, 64 - bits)) if bits else np.arange(len(marks))
        found, first = _later(hashes[indices])
        count += len(found)
        pairs += list(zip(where[indices[found]].tolist(), where[indices[first]].tolist(), strict=True))
        pairs = sorted(pairs)[:_MOST_PAIRS]
    return count, pairs


def _within(hashes: "npt.NDArray[np.uint64]", part: int, shift: int) -> "npt.NDArray[np.bool_]":
    """Which hashes begin with `part`; by comparing, because shifted hashes would be as large once more."""
    found = hashes >= np.uint64(part << shift)
    found &= hashes <= np.uint64((part + 1 << shift) - 1)
    return found


def _later(hashes: "npt.NDArray[np.uint64]") -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]":
    """Indices of those that are like an earlier one, and of the earliest each is like."""
    again = _repeated(hashes)
    order = again[np.argsort(hashes[again], kind="stable")]
    ordered = hashes[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    firsts = order[np.flatnonzero(begins)][np.cumsum(begins) - 1] if len(order) else order
    return order[~begins], firsts[~begins]


def _repeated(hashes: "npt.NDArray[np.uint64]") -> "npt.NDArray[np.int64]":
    """Indices, ascending, of the values that stand there more than once: few, so the rest of the work is on
    few. This sort need not be stable, which makes it the quickest there is."""
    order = np.argsort(hashes)
    ordered = hashes[order]
    same = ordered[1:] == ordered[:-1]
    again = np.zeros(len(order), dtype=bool)
    again[1:] = same
    again[:-1] |= same
    return np.sort(order[again])


def signatures(texts: Sequence[str]) -> Signatures:
    """MinHash signatures (rows, 64) over the words of texts; texts without words are like nothing else."""
    from rensa import RMinHash

    marks = np.empty((len(texts), NUM_PERM), dtype=np.uint32)
    # Few rows at a time: the words of all would be memory taken anew, which costs more than hashing them.
    for start in range(0, len(texts), _BATCH_ROWS):
        part = texts[start : start + _BATCH_ROWS]
        words = [text.split() or [f"\0{index}"] for index, text in enumerate(part, start)]
        marks[start : start + len(part)] = RMinHash.digests_from_token_sets(words, NUM_PERM, _SEED)
    return marks


def near(marks: Signatures) -> "list[tuple[int, int, float]]":
    """Rows nearly the same as an earlier one: (row, earlier row, estimated Jaccard similarity), by row."""
    best: dict[int, tuple[int, float]] = {}
    bands = list(_bands(marks))
    for band, following in zip(bands, [*bands[1:], *bands[:1]], strict=True):
        again = _repeated(band)
        rows, firsts = _later(band[again])
        rows, firsts = again[rows], again[firsts]
        _keep(best, rows, firsts, _similarity(marks[rows], marks[firsts]))
        # Where words are few, many rows that are not alike share a band; sorted by the next band too, those
        # that are alike stand side by side.
        order = again[np.lexsort((following[again], band[again]))]
        beside = np.flatnonzero(band[order[1:]] == band[order[:-1]])
        left, right = order[beside], order[beside + 1]
        rows, firsts = np.maximum(left, right), np.minimum(left, right)
        _keep(best, rows, firsts, _similarity(marks[rows], marks[firsts]))
    return [(row, first, similarity) for row, (first, similarity) in sorted(best.items())]


def overlap(marks: Signatures, others: Signatures) -> "list[tuple[int, int, float]]":
    """Rows that stand, nearly, among others: (row, other row, estimated Jaccard similarity), by row."""
    best: dict[int, tuple[int, float]] = {}
    if not len(others):
        return []
    for mine, theirs in zip(_bands(marks), _bands(others), strict=True):
        order = np.argsort(theirs, kind="stable")
        at = np.minimum(np.searchsorted(theirs[order], mine), len(theirs) - 1)
        rows = np.flatnonzero(theirs[order[at]] == mine)
        firsts = order[at[rows]]
        _keep(best, rows, firsts, _similarity(marks[rows], others[firsts]))
    return [(row, first, similarity) for row, (first, similarity) in sorted(best.items())]


def _bands(marks: Signatures) -> "Iterable[npt.NDArray[np.uint64]]":
    """A hash a row for each band of its signature."""
    width = NUM_PERM // _BANDS
    for band in range(_BANDS):
        mixed = np.zeros(len(marks), dtype=np.uint64)
        for column in marks[:, band * width : (band + 1) * width].T:
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)  # wraps, as a hash may
            mixed ^= mixed >> np.uint64(29)
        yield mixed


def _similarity(left: Signatures, right: Signatures) -> "npt.NDArray[np.float64]":
    return np.asarray((left == right).mean(axis=1), dtype=np.float64)


def _keep(
    best: dict[int, tuple[int, float]],
    rows: "npt.NDArray[np.int64]",
    firsts: "npt.NDArray[np.int64]",
    similar: "npt.NDArray[np.float64]",
) -> None:
    found = similar >= NEAR
    for row, first, value in zip(
        rows[found].tolist(), firsts[found].tolist(), similar[found].tolist(), strict=True
    ):
        if value > best.get(row, (0, 0.0))[1]:
            best[row] = (first, value)
