"""The bytes of a snapshot slot, as docs/run-folder.md says. No torch: the side process reads them too."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAGIC = b"TSSNAP01"
HEADER_BYTES = 128
ALIGNMENT = 64
# Magic, generation, step, place after the step (Progress.position), bytes of JSON, bytes of tensors, sum of
# the tensors' 64-bit words, CRC-32 of the JSON; then the CRC-32 of all that.
_HEADER = struct.Struct("<8sQQQQQQI")
_CRC = struct.Struct("<I")
_GENERATION_AT = 8


@dataclass(frozen=True, slots=True)
class Header:
    """What a slot says of itself; `generation` 0 means that it is being written."""

    generation: int
    step: int
    place: int
    json_bytes: int
    tensor_bytes: int
    tensor_sum: int
    json_crc: int

    def write(self, memory: Any, at: int) -> None:
        """Write it at offset `at`; the body must be there already."""
        packed = _HEADER.pack(
            MAGIC,
            self.generation,
            self.step,
            self.place,
            self.json_bytes,
            self.tensor_bytes,
            self.tensor_sum,
            self.json_crc,
        )
        memory[at : at + HEADER_BYTES] = (packed + _CRC.pack(zlib.crc32(packed))).ljust(HEADER_BYTES, b"\0")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: `start` counts from the beginning of the slot's tensors, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    def to_json(self) -> list[Any]:
        """The entry of the slot's table."""
        return [self.name, self.dtype, list(self.shape), self.start, self.num_bytes]


def read_header(memory: Any, at: int, capacity: int) -> Header | None:
    """The header at offset `at`, or None if the slot holds nothing whole that fits `capacity` bytes."""
    raw = bytes(memory[at : at + HEADER_BYTES])
    if len(raw) < HEADER_BYTES or raw[: len(MAGIC)] != MAGIC:
        return None
    if _CRC.unpack_from(raw, _HEADER.size)[0] != zlib.crc32(raw[: _HEADER.size]):
        return None
    header = Header(*_HEADER.unpack_from(raw)[1:])
    fits = HEADER_BYTES + header.json_bytes + header.tensor_bytes <= capacity
    return header if header.generation and fits else None


def invalidate(memory: Any, at: int) -> None:
    """Say that the slot's body is about to change."""
    struct.pack_into("<Q", memory, at + _GENERATION_AT, 0)


def read_record(memory: Any, at: int, header: Header) -> tuple[dict[str, Any], list[Place]] | None:
    """The JSON of a slot and where its tensors lie, or None if it is not what the header says."""
    first = at + HEADER_BYTES
    raw = bytes(memory[first : first + header.json_bytes])
    if zlib.crc32(raw) != header.json_crc:
        return None
    record = json.loads(raw)
    table = [
        Place(name, dtype, tuple(shape), start, size) for name, dtype, shape, start, size in record["tensors"]
    ]
    return record, table


def lay_out(tensors: Sequence[tuple[str, str, tuple[int, ...], int]]) -> tuple[list[Place], int]:
    """Places for tensors of (name, dtype, shape, bytes), and the bytes of all."""
    places, at = [], 0
    for name, dtype, shape, size in tensors:
        places.append(Place(name, dtype, shape, at, size))
        at = aligned(at + size)
    return places, at


def aligned(size: int) -> int:
    """`size` rounded up to the alignment of tensors."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def encode(record: Mapping[str, Any]) -> bytes:
    """The JSON of a slot."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
