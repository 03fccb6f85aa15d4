"""Chunks: points of one key, compressed, and curves out of many of them.

Numbers are made small before zstd sees them. Integers become differences: none when all are alike, else as
many bytes as the largest needs. Values that are decimals (of percent, degrees, watts) become integers; others
are laid out by byte, so that signs and exponents stand together. Each such plane of bytes is a block of its
own to zstd: noise beside exponents in one block would spoil the code of both.
"""

import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import numpy as np
import zstandard
from numpy.typing import NDArray

from tunesmith_metrics.series import Curve, Floats, Ints, Points

Number = TypeVar("Number", np.int64, np.float64)
_HEAD = struct.Struct("<BBI")
_INTS = struct.Struct("<Bqq")
_VERSION = 1
_RAW, _DECIMAL = 255, 4  # how values lie: by byte, or as integers times 10^-d with d up to 4
_LARGEST = 2.0**53
_LEVEL = 3
_BLOCK = 1000  # bytes of a plane that are worth the head of a block
_local = threading.local()  # zstd contexts are cheap to keep, and not to be shared

# A whole chunk: about 1 MB before compression, decoded in a millisecond.
MOST_POINTS = 65_536


def encode(points: Points) -> bytes:
    """Returns the points, in their order, as a payload that `decode` takes."""
    scale, values = _pack_values(points.values)
    parts = (_pack_ints(points.seqs), _pack_ints(points.steps), _pack_ints(points.times_us), values)
    sizes = [sum(map(len, planes)) for planes in parts]
    head = _HEAD.pack(_VERSION, scale, len(points.steps))
    return head + _compress([struct.pack("<4I", *sizes), *chain(*parts)])


def decode(payload: bytes) -> Points:
    """Returns the points of a payload. Raises ValueError for one that `encode` did not make."""
    version, scale, count = _HEAD.unpack_from(payload)
    if version != _VERSION:
        raise ValueError(f"chunk of version {version}")
    data = _decompressor().decompress(payload[_HEAD.size :])
    sizes = struct.unpack_from("<4I", data)
    at, parts = 16, []
    for size in sizes:
        parts.append(memoryview(data)[at : at + size])
        at += size
    seqs, steps, times = (_unpack_ints(part, count) for part in parts[:3])
    return Points(steps, times, _unpack_values(parts[3], scale, count), seqs)


def _compress(planes: Sequence[bytes]) -> bytes:
    stream = _compressor().compressobj(size=sum(map(len, planes)))
    packed = []
    for plane in planes:
        packed.append(stream.compress(plane))
        if len(plane) >= _BLOCK:
            packed.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    return b"".join((*packed, stream.flush()))


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    return _local.compressor  # type: ignore[no-any-return]


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    return _local.decompressor  # type: ignore[no-any-return]


def _pack_ints(numbers: Ints) -> list[bytes]:
    first = int(numbers[0])
    deltas = np.diff(numbers)  # wraps around where a difference leaves 64 bits, and back when summed
    if not len(deltas):
        return [_INTS.pack(0, first, 0)]
    low, high = int(deltas.min()), int(deltas.max())
    width = next(w for w in (0, 1, 2, 4, 8) if high - low < 1 << (8 * w))
    if not width:
        return [_INTS.pack(0, first, low)]
    if width == 8:
        low = 0
    narrow = (deltas - low).astype(f"<u{width}")
    return [_INTS.pack(width, first, low), *_by_byte(narrow)]


def _unpack_ints(part: memoryview, count: int) -> Ints:
    width, first, low = _INTS.unpack_from(part)
    numbers = np.empty(count, dtype=np.int64)
    numbers[0] = first
    if width == 0:
        numbers[1:] = low
    else:
        narrow = _from_bytes(part[_INTS.size :], f"<u{width}", count - 1)
        numbers[1:] = narrow.astype(np.int64, copy=False) + low
    return np.cumsum(numbers)


def _pack_values(values: Floats) -> tuple[int, list[bytes]]:
    sample = values[:: max(1, len(values) // 32)]
    for scale in range(_DECIMAL + 1):
        if _decimals(sample, scale) is not None:
            whole = _decimals(values, scale)
            return (_RAW, _by_byte(values)) if whole is None else (scale, _pack_ints(whole))
    return _RAW, _by_byte(values)


def _decimals(values: Floats, scale: int) -> Ints | None:
    """The values times 10^scale as integers if that loses no bit of any of them, else None."""
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.rint(values * 10.0**scale)
        if not (np.abs(scaled) < _LARGEST).all():  # NaN and infinities too
            return None
        back = scaled.astype(np.int64) / 10.0**scale
    # Bits, not values: a negative zero must stay one.
    same = (back.view(np.int64) == np.ascontiguousarray(values).view(np.int64)).all()
    return scaled.astype(np.int64) if same else None


def _unpack_values(part: memoryview, scale: int, count: int) -> Floats:
    if scale == _RAW:
        return _from_bytes(part, "<f8", count).view(np.float64)
    return _unpack_ints(part, count) / 10.0**scale


def _by_byte(numbers: NDArray[np.generic]) -> list[bytes]:
    flat = np.ascontiguousarray(numbers)
    return [plane.tobytes() for plane in flat.view(np.uint8).reshape(len(flat), flat.itemsize).T]


def _from_bytes(part: memoryview, kind: str, count: int) -> NDArray[np.generic]:
    width = np.dtype(kind).itemsize
    planes = np.frombuffer(part, dtype=np.uint8).reshape(width, count)
    return np.ascontiguousarray(planes.T).view(kind).reshape(count)


def take(points: Points, chosen: NDArray[np.intp] | slice) -> Points:
    """Returns those of the points that indices or a slice choose."""
    return Points(points.steps[chosen], points.times_us[chosen], points.values[chosen], points.seqs[chosen])


def concatenate(parts: Sequence[Points]) -> Points:
    """Returns the points of all parts, those of one rank in the order of their sequence numbers."""
    whole = Points(
        _joined([part.steps for part in parts]),
        _joined([part.times_us for part in parts]),
        _joined([part.values for part in parts]),
        _joined([part.seqs for part in parts]),
    )
    if (whole.seqs[1:] >= whole.seqs[:-1]).all():
        return whole
    return take(whole, np.argsort(whole.seqs, kind="stable"))


@dataclass(slots=True)
class Merger:
    """Brings points of many ranks and attempts into curves, one point a step.

    Of one step the highest epoch counts, of one epoch the lowest rank, of one rank the latest record.
    """

    _parts: dict[str, dict[tuple[int, int], list[Points]]] = field(default_factory=dict)

    def add(self, key: str, epoch: int, rank: int, points: Points) -> None:
        """Takes in points of a key."""
        # In the order of the tuples the later one counts.
        self._parts.setdefault(key, {}).setdefault((epoch, -rank), []).append(points)

    def curves(self, low: int | None = None, high: int | None = None) -> dict[str, Curve]:
        """Returns the curves by key, sorted by key, of the steps from `low` to `high`; none is empty."""
        found = {key: _merge(self._parts[key], low, high) for key in sorted(self._parts)}
        return {key: curve for key, curve in found.items() if len(curve.steps)}


def _merge(parts: dict[tuple[int, int], list[Points]], low: int | None, high: int | None) -> Curve:
    order = sorted(parts)
    ranks = [concatenate(parts[rank]) for rank in order]
    sizes = [len(points.steps) for points in ranks]
    whole = Curve(
        _joined([points.steps for points in ranks]),
        _joined([points.times_us for points in ranks]),
        _joined([points.values for points in ranks]),
        np.repeat(np.array([epoch for epoch, _ in order], dtype=np.int64), sizes),
        np.repeat(np.array([-rank for _, rank in order], dtype=np.int64), sizes),
    )
    if not (whole.steps[1:] > whole.steps[:-1]).all():
        by_step = np.argsort(whole.steps, kind="stable")  # what counts more stays behind what counts less
        steps = whole.steps[by_step]
        whole = _chosen(whole, by_step[np.append(steps[1:] != steps[:-1], True)])
    if low is None and high is None:
        return whole
    start = 0 if low is None else int(np.searchsorted(whole.steps, low))
    end = len(whole.steps) if high is None else int(np.searchsorted(whole.steps, high, side="right"))
    return _chosen(whole, slice(start, end))


def _joined(arrays: list[NDArray[Number]]) -> NDArray[Number]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _chosen(curve: Curve, which: NDArray[np.intp] | slice) -> Curve:
    return Curve(
        curve.steps[which],
        curve.times_us[which],
        curve.values[which],
        curve.epochs[which],
        curve.ranks[which],
    )
