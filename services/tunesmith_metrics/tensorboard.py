"""TensorBoard event files, written without TensorBoard: records with checksums around small messages.

A file is a run of records: length (8 bytes), checksum of the length, an Event, checksum of the Event. A
million of them are made a column of bytes at a time, not an Event at a time.
"""

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_metrics.series import Curve, Ints

_ROWS = 16_384
_MASK_DELTA = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected
Bytes = NDArray[np.uint8]


def _table() -> NDArray[np.uint32]:
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> 1) ^ np.uint32(_POLYNOMIAL), crc >> 1)
    return crc


_TABLE = _table()


def _checksums(rows: Bytes) -> NDArray[np.uint32]:
    """Masked CRC-32C of each row of bytes, shape (n, length) to (n,)."""
    crc = np.full(len(rows), 0xFFFFFFFF, dtype=np.uint32)
    for column in np.ascontiguousarray(rows.T):
        crc = _TABLE[(crc ^ column) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    return np.asarray(((crc >> 15) | (crc << 17)) + np.uint32(_MASK_DELTA), dtype=np.uint32)


def _records(events: Bytes) -> bytes:
    """Frames Events of one length, shape (n, length)."""
    num, length = events.shape
    head = np.frombuffer(struct.pack("<Q", length), dtype=np.uint8)[None, :]
    out = np.empty((num, 8 + 4 + length + 4), dtype=np.uint8)
    out[:, :8] = head
    out[:, 8:12] = _checksums(head).astype("<u4").view(np.uint8)
    out[:, 12:-4] = events
    out[:, -4:] = _checksums(events).astype("<u4").view(np.uint8).reshape(num, 4)
    return out.tobytes()


def _record(event: bytes) -> bytes:
    return _records(np.frombuffer(event, dtype=np.uint8)[None, :])


def head(time_us: int) -> bytes:
    """The record that a file begins with."""
    return _record(_double(1, time_us / 1e6) + _bytes(3, b"brain.Event:2"))


def scalars(key: str, curve: Curve) -> Iterator[bytes]:
    """Yields the points of a curve, some 64 bytes each. TensorBoard keeps values in 32 bits."""
    for start in range(0, len(curve.steps), _ROWS):
        part = slice(start, start + _ROWS)
        steps, times = curve.steps[part], curve.times_us[part] / 1e6
        with np.errstate(over="ignore"):  # beyond 32 bits it is infinity
            values = curve.values[part].astype("<f4")
        widths = _widths(steps)
        changes = np.flatnonzero(np.diff(widths)) + 1  # steps ascend, so there are few
        for low, high in zip([0, *changes], [*changes, len(steps)], strict=True):
            rows = slice(low, high)
            yield _records(_scalars(key, steps[rows], times[rows], values[rows], int(widths[low])))


def _scalars(
    key: str, steps: Ints, times: NDArray[np.float64], values: NDArray[np.float32], width: int
) -> Bytes:
    """Events with steps that take `width` bytes."""
    # Event {wall_time = 1, step = 2, summary = 5 {value = 1 {tag = 1, simple_value = 2}}}
    value = _bytes(1, key.encode()) + b"\x15"
    behind_step = _tag(5, 2) + _varint(len(_bytes(1, value + b"0000"))) + _tag(1, 2)
    behind_step += _varint(len(value) + 4) + value
    parts: list[Bytes] = [
        _constant(_tag(1, 1), len(steps)),
        times.astype("<f8").view(np.uint8).reshape(-1, 8),
        _constant(_tag(2, 0), len(steps)),
        _varints(steps, width),
        _constant(behind_step, len(steps)),
        values.view(np.uint8).reshape(-1, 4),
    ]
    return np.concatenate(parts, axis=1)


def _constant(content: bytes, num: int) -> Bytes:
    return np.broadcast_to(np.frombuffer(content, dtype=np.uint8), (num, len(content)))


def _widths(steps: Ints) -> NDArray[np.int64]:
    """Bytes that each step takes; a negative one takes ten."""
    unsigned = steps.view(np.uint64)
    widths = np.ones(len(steps), dtype=np.int64)
    for bits in range(7, 64, 7):
        widths += unsigned >= np.uint64(1 << bits)
    return widths


def _varints(steps: Ints, width: int) -> Bytes:
    unsigned = steps.view(np.uint64)
    out = np.empty((len(steps), width), dtype=np.uint8)
    for at in range(width):
        out[:, at] = (unsigned >> np.uint64(7 * at)) & np.uint64(0x7F)
        if at < width - 1:
            out[:, at] |= 0x80
    return out


def rich(key: str, value: events_pb2.RichValue) -> bytes:
    """A histogram or a text; nothing for a picture, whose bytes are not here."""
    kind = value.WhichOneof("value")
    if kind == "histogram":
        content = _bytes(5, _histogram(value.histogram))
    elif kind == "text":
        # {tensor = 8 {dtype = 1: DT_STRING, tensor_shape = 2 {dim = 2 {size = 1: 1}}, string_val = 8},
        #  metadata = 9 {plugin_data = 1 {plugin_name = 1: "text"}}}
        tensor = b"\x08\x07" + _bytes(2, _bytes(2, b"\x08\x01")) + _bytes(8, value.text.encode())
        content = _bytes(8, tensor) + _bytes(9, _bytes(1, _bytes(1, b"text")))
    else:
        return b""
    summary = _bytes(1, _bytes(1, key.encode()) + content)
    step = b"\x10" + _varint(value.step & 0xFFFFFFFFFFFFFFFF)
    return _record(_double(1, value.time_us / 1e6) + step + _bytes(5, summary))


def _histogram(found: events_pb2.Histogram) -> bytes:
    """HistogramProto {min = 1, max = 2, num = 3, sum = 4, sum_squares = 5, bucket_limit = 6, bucket = 7}."""
    edges, counts = np.array(found.edges), np.array(found.counts, dtype=np.float64)
    middles = (edges[1:] + edges[:-1]) / 2 if len(edges) > 1 else np.zeros(0)
    low, high = (float(edges[0]), float(edges[-1])) if len(edges) else (0.0, 0.0)
    total = float((middles * counts).sum()), float((middles**2 * counts).sum())
    numbers = enumerate((low, high, float(counts.sum()), *total), 1)
    limits, buckets = edges[1:].astype("<f8").tobytes(), counts.astype("<f8").tobytes()
    return b"".join(_double(n, number) for n, number in numbers) + _bytes(6, limits) + _bytes(7, buckets)


def _tag(number: int, wire: int) -> bytes:
    return bytes([number << 3 | wire])


def _double(number: int, value: float) -> bytes:
    return _tag(number, 1) + struct.pack("<d", value)


def _bytes(number: int, content: bytes) -> bytes:
    return _tag(number, 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
