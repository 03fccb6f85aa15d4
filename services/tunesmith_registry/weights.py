"""Safetensors files, judged by their header; no tensor is ever built."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.manifest import ManifestFile
from tunesmith_registry.configs import invalid

_HEADER_BYTES = 100 * 1024 * 1024
_CHUNK = 4 * 1024 * 1024
_MOST_DIMENSIONS = 8
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
    "C64": 8,
}  # fmt: skip
# Bits of the exponent: all set in infinities and in what is no number.
_EXPONENTS: dict[str, tuple[Any, int]] = {
    "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80), "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file: its type, its shape, and where its bytes lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def tensors(store: BlobStore, file: ManifestFile) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name, from its header: 8 bytes of length, then JSON. Blocks.

    Raises:
        InvalidArgument: the header is none, or does not fit the bytes of the file.
    """
    length = int.from_bytes(store.read_range(file.sha256, 0, 8), "little")
    if not 2 <= length <= min(_HEADER_BYTES, file.size_bytes - 8):
        raise invalid(f"{file.path} is no safetensors file", file.path)
    try:
        header = json.loads(store.read_range(file.sha256, 8, length))
        entries = {name: _tensor(entry, 8 + length) for name, entry in _entries(header)}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise invalid(f"{file.path} has a broken header: {error}", file.path) from error
    place = 8 + length
    for tensor in sorted(entries.values(), key=lambda each: (each.begin, each.end)):
        if tensor.begin != place:
            raise invalid(f"{file.path} has a broken header: tensors overlap or leave gaps", file.path)
        place = tensor.end
    if place != file.size_bytes:
        what = "is cut off" if place > file.size_bytes else "has bytes that belong to no tensor"
        raise invalid(f"{file.path} {what}", file.path, file.size_bytes, "upload the file again")
    return entries


def _entries(header: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, entry) for name, entry in header.items() if name != "__metadata__")


def _tensor(entry: Mapping[str, Any], base: int) -> Tensor:
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    numbers = (*shape, begin, end)
    if len(shape) > _MOST_DIMENSIONS or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a shape or an offset is no whole number")
    size = math.prod(shape) * _BYTES[entry["dtype"]]
    if size != end - begin:
        raise ValueError(f"a tensor of {size} bytes has {end - begin}")
    return Tensor(entry["dtype"], shape, base + begin, base + end)


def count(store: BlobStore, file: ManifestFile) -> int:
    """Parameters of a safetensors file. Raises as `tensors` does."""
    return sum(math.prod(tensor.shape) for tensor in tensors(store, file).values())


def check_finite(store: BlobStore, file: ManifestFile) -> None:
    """Raises `InvalidArgument` when a weight is infinite or no number. Reads the whole file; blocks."""
    for name, tensor in tensors(store, file).items():
        if tensor.dtype not in _EXPONENTS:
            continue
        kind, mask = _EXPONENTS[tensor.dtype]
        for place in range(tensor.begin, tensor.end, _CHUNK):
            data = store.read_range(file.sha256, place, min(_CHUNK, tensor.end - place))
            bits = np.frombuffer(data, kind)
            if bool(((bits & kind(mask)) == kind(mask)).any()):
                raise invalid(
                    f"{file.path}: {name[:200]} has weights that are no numbers", file.path, name[:200],
                    "train it anew: such a model answers nothing",
                )  # fmt: skip
