"""JSON lines in blocks: cut at line ends, checked one block at a time, in any process."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import orjson

from tunesmith_registry.data import plain
from tunesmith_registry.data.checking import Checked, Checker, Rules

BLOCK = 2 * 1024 * 1024
LONGEST_LINE = 16 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_REMEDY = 'write an object such as {"prompt": "…", "completion": "…"}'


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines; `first` is the number of the first of them. A line too long stands alone and is cut."""

    first: int
    data: bytes
    too_long: bool = False


def blocks(file: BinaryIO) -> Iterator[Block]:
    """Cuts a file into blocks; memory stays below the longest line and a block."""
    held, number = b"", 1
    began = True
    while data := file.read(BLOCK):
        if began:
            data, began = data.removeprefix(_BOM), False
        end = data.rfind(b"\n") + 1
        if not end:
            held += data
            if len(held) <= LONGEST_LINE:
                continue
            yield Block(number, held[:200], True)
            number += 1
            held = _behind_line(file)
            continue
        whole, held = held + data[:end], data[end:]
        yield from _fitting(number, whole)
        number += whole.count(b"\n")
    if held:
        yield from _fitting(number, held)


def _fitting(number: int, whole: bytes) -> Iterator[Block]:
    # Only the first line can have grown over the limit: the rest came with one read.
    end = whole.find(b"\n") + 1
    if end > LONGEST_LINE:
        yield Block(number, whole[:200], True)
        number, whole = number + 1, whole[end:]
    if whole:
        yield Block(number, whole)


def _behind_line(file: BinaryIO) -> bytes:
    """Reads on to the end of a line that is too long; returns what was read of the next."""
    while data := file.read(BLOCK):
        _, end, rest = data.partition(b"\n")
        if end:
            return rest
    return b""


def check(block: Block, rules: Rules) -> Checked:
    """Checks the rows of a block."""
    checker = Checker(rules)
    if block.too_long:
        checker.refuse(
            f"line {block.first}",
            "ROW_TOO_LONG",
            _shown(block.data),
            "is longer than 16 MiB",
            "split the row",
        )
        return checker.finish()
    loads, take = orjson.loads, plain.taker(checker, block.data)
    for number, line in enumerate(BytesIO(block.data), block.first):
        try:
            fields = loads(line)
        except orjson.JSONDecodeError as error:
            if line.strip():
                _refuse(checker, number, line, error)
            continue
        if take(number, line, fields):
            continue
        if type(fields) is not dict:
            place = f"line {number}"
            checker.refuse(place, "ROW_UNREADABLE", _shown(line), "is no JSON object", _REMEDY)
        elif line.count(b'":') != _num_keys(fields) and (twice := _double_key(line)):
            checker.refuse(f"line {number}", "KEY_TWICE", twice, f"has {twice} twice", "keep one of them")
        else:
            checker.take("line", number, fields)
    return checker.finish()


def _refuse(checker: Checker, number: int, line: bytes, error: Exception) -> None:
    place = f"line {number}"
    try:
        line.decode()
    except UnicodeDecodeError:
        checker.refuse(place, "ENCODING", _shown(line), "is no UTF-8 text", "save the file as UTF-8")
        return
    remedy = "write one JSON object a line"
    checker.refuse(place, "ROW_UNREADABLE", _shown(line), f"is no JSON: {error}"[:300], remedy)


def _num_keys(fields: dict[str, object]) -> int:
    """Keys of an object and of the objects in its lists: the shapes nearly all rows have."""
    count = len(fields)
    for value in fields.values():
        if type(value) is list:
            for item in value:
                if type(item) is dict:
                    count += len(item)
    return count


def _double_key(line: bytes) -> str:
    """The key that stands twice in an object of the line, which parsers silently lose; empty: none."""
    double: list[str] = []

    def look(pairs: list[tuple[str, object]]) -> None:
        keys = [key for key, _ in pairs]
        double.extend(key for key in keys if keys.count(key) > 1)

    json.loads(line, object_pairs_hook=look)
    return f"the key {double[0]!r}" if double else ""


def _shown(line: bytes) -> str:
    return line[:400].decode(errors="replace").strip()[:200]
