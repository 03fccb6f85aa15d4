"""GGUF files: what one says of itself, from its header alone (whatever it claims, little is kept of it); and
writing one, which the trainer's libraries do in a process of their own."""

from __future__ import annotations

import importlib.util
import math
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tunesmith.errors import InvalidArgument, Unavailable

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_MOST_KEYS, _MOST_TENSORS, _MOST_ITEMS = 100_000, 1_000_000, 20_000_000
_LONGEST_NAME, _KEPT_TEXT, _DEEPEST = 1 << 16, 1000, 3
_STRING, _ARRAY = 8, 9
_WRITE_SECONDS = 4 * 3600.0
# Formats of struct by type of value.
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K",
    11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    24: "IQ1_S", 25: "IQ4_NL", 30: "IQ4_XS", 32: "BF16", 38: "MXFP4",
}  # fmt: skip
Value = int | float | bool | str


@dataclass(frozen=True)
class Header:
    """What is of interest. Texts are empty and numbers 0 where the file says nothing."""

    architecture: str
    name: str
    license: str
    context_length: int
    num_parameters: int
    quantization: str


def read(path: str | Path) -> Header:
    """Reads the header of a file. Raises InvalidArgument when it is no GGUF file, is broken, or is a part."""
    file = Path(path)
    try:
        with file.open("rb") as opened:
            return _Reader(opened, file).header()
    except OSError as error:
        raise _bad(file, f"it cannot be read: {error.strerror or error}") from None
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise _bad(file, f"its header is broken: {error}") from None


def _bad(file: Path, why: str, remedy: str = "") -> InvalidArgument:
    return InvalidArgument(
        "BASE_MODEL_INVALID",
        f"{file.name} is no usable GGUF file: {why}",
        field="file",
        value=file,
        remedy=remedy or "fetch it again; a whole file of GGUF version 2 or 3 is needed",
    )


class _Reader:
    """A header on its way. Every length is compared with what is left of the file before it is believed."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._left = path.stat().st_size
        self._items = _MOST_ITEMS

    def header(self) -> Header:
        """Reads magic, keys and tensors."""
        if self._left < 24 or self._bytes(4) != _MAGIC:
            raise _bad(self._path, "it does not begin like one", "give a file whose name ends in .gguf")
        version = int(self._number("I"))
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            why = "it is for big-endian machines" if swapped in _VERSIONS else f"it has version {version}"
            raise _bad(self._path, why)
        num_tensors, num_keys = self._count("Q", _MOST_TENSORS), self._count("Q", _MOST_KEYS)
        said: dict[str, Value] = {}
        for _ in range(num_keys):
            key = self._text(_LONGEST_NAME)
            value = self._value(int(self._number("I")), 0)
            if value is not None:
                said[key] = value
        if int(said.get("split.count", 0)) > 1:
            raise _bad(self._path, "it is one part of several", "merge the parts with `gguf-split --merge`")
        sizes, last = Counter[int](), 0
        for _ in range(num_tensors):
            kind, size, offset = self._tensor()
            sizes[kind] += size
            last = max(last, offset)
        if last > self._left:
            raise _bad(self._path, "it was cut off: tensors lie beyond its end")
        return _header(said, sizes)

    def _tensor(self) -> tuple[int, int, int]:
        """Reads what is said of a tensor: its type, its parameters, and where it lies after the header."""
        self._text(_LONGEST_NAME)
        dimensions = self._count("I", 8)
        size = math.prod(int(self._number("Q")) for _ in range(dimensions))
        kind = int(self._number("I"))
        offset = int(self._number("Q"))
        if size > 1 << 50:
            raise _bad(self._path, "a tensor of it has more than 10^15 parameters")
        return kind, size, offset

    def _value(self, kind: int, depth: int) -> Value | None:
        """Reads a value; of a list nothing is kept."""
        if kind == _STRING:
            return self._text(None)
        if kind == _ARRAY:
            self._skip_list(depth)
            return None
        if kind not in _FORMS:
            raise _bad(self._path, f"it has a value of the unknown type {kind}")
        return self._number(_FORMS[kind])

    def _skip_list(self, depth: int) -> None:
        kind, length = int(self._number("I")), self._count("Q", _MOST_ITEMS)
        self._items -= length
        if depth >= _DEEPEST or self._items < 0:
            raise _bad(self._path, "its lists are too long or too deep")
        if kind in _FORMS:
            self._skip(length * struct.calcsize(f"<{_FORMS[kind]}"))
            return
        for _ in range(length):
            if kind == _STRING:
                self._skip(int(self._number("Q")))
            else:
                self._value(kind, depth + 1)

    def _text(self, most: int | None) -> str:
        length = int(self._number("Q"))
        if most is not None and length > most:
            raise _bad(self._path, f"a name of it is {length:,} bytes long")
        kept = min(length, _LONGEST_NAME)
        text = self._bytes(kept).decode(errors="replace")
        self._skip(length - kept)
        return text

    def _count(self, form: str, most: int) -> int:
        number = int(self._number(form))
        if number > most:
            raise _bad(self._path, f"it claims {number:,} entries where at most {most:,} are read")
        return number

    def _number(self, form: str) -> int | float | bool:
        found: int | float | bool = struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))[0]
        return found

    def _bytes(self, size: int) -> bytes:
        self._take(size)
        return self._file.read(size)

    def _skip(self, size: int) -> None:
        self._take(size)
        self._file.seek(size, 1)

    def _take(self, size: int) -> None:
        if size > self._left:
            raise _bad(self._path, "its header goes beyond its end: it was cut off, or claims too much")
        self._left -= size


def _header(said: dict[str, Value], sizes: Counter[int]) -> Header:
    architecture = _word(said, "general.architecture")
    most = sizes.most_common(1)
    by_size = _TENSOR_TYPES.get(most[0][0], f"type {most[0][0]}") if most else ""
    named = said.get("general.file_type")
    context = said.get(f"{architecture}.context_length", 0)
    return Header(
        architecture=architecture,
        name=_word(said, "general.name"),
        license=_word(said, "general.license"),
        context_length=context if type(context) is int else 0,
        num_parameters=sum(sizes.values()),
        quantization=_FILE_TYPES.get(named, by_size) if type(named) is int else by_size,
    )


def _word(said: dict[str, Value], key: str) -> str:
    value = said.get(key, "")
    return " ".join(value.split())[:_KEPT_TEXT] if isinstance(value, str) else ""


def need_writer(target: Path) -> None:
    """Looks whether a file can be written: libraries and folder are there, and nothing lies there yet.

    Raises Unavailable or InvalidArgument.
    """
    if importlib.util.find_spec("tunesmith_trainer") is None:
        raise Unavailable(
            "PROGRAM_MISSING",
            "writing GGUF needs the trainer's libraries",
            remedy="pip install 'tunesmith[trainer]', or do it on a machine that has them",
        )
    if target.exists() or not target.parent.is_dir():
        what = "is there already" if target.exists() else "lies in no folder that exists"
        raise InvalidArgument(
            "FILE_UNREADABLE",
            f"{target} {what}",
            field="file",
            value=target,
            remedy="name a file that does not exist yet, in a folder that does",
        )


def write(folder: Path, target: Path, weights: str) -> None:
    """Writes an exported folder as GGUF, in a process of the trainer's. Blocks.

    Raises InvalidArgument when the folder cannot be said as GGUF.
    """
    command = [sys.executable, "-m", "tunesmith_trainer.gguffile", str(folder), str(target)]
    done = subprocess.run(
        [*command, "--weights", weights], capture_output=True, text=True, check=False, timeout=_WRITE_SECONDS
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["the writer said nothing"])[-1]
        raise InvalidArgument(
            "EXPORT_IMPOSSIBLE",
            last[:500],
            field="weights",
            value=weights,
            remedy="`--format merged` exports any model as safetensors",
        )
