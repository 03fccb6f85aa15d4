"""The check of rows: each brought into its canonical form, or refused with its place.

Light on purpose: JSON lines are checked in blocks by processes of their own (`worker.py`), which import this
module, so nothing here needs a contract or a database.
"""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

from tunesmith_registry.data.rows import RECORD, Normal, RowError, normalise

MOST = 20
LONG_CHARACTERS = 100_000
_MOST_COLUMNS = 200

# (place, reason, value, problem, remedy, is it an error)
Found = tuple[str, str, str, str, str, bool]


@dataclass(frozen=True, slots=True)
class Rules:
    """How rows are to be read: canonical name to column, and the shape wanted (empty: found out)."""

    mapping: Mapping[str, str] = field(default_factory=dict)
    row_format: str = ""


@dataclass(slots=True)
class Checked:
    """Rows in canonical form and what was found about them; `marks` and `places` are one a good row."""

    text: bytes | bytearray = b""
    marks: "array[int]" = field(default_factory=lambda: array("Q"))
    places: "array[int]" = field(default_factory=lambda: array("Q"))
    num_read: int = 0
    row_format: str = ""
    columns: list[str] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)
    found: list[Found] = field(default_factory=list)
    counts: Counter[tuple[str, bool]] = field(default_factory=Counter)


class Checker:
    """Goes over rows and keeps what it found."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.out = Checked(row_format=rules.row_format)
        # Not a list of rows: small objects that live as long as a block cost five times the check itself,
        # because the interpreter takes their memory from the kernel and gives it back for every block.
        self.text, self.digests = bytearray(), bytearray()
        self._columns: set[str] = set()
        self._kept: Counter[bool] = Counter()

    def refuse(self, place: str, reason: str, value: str, problem: str, remedy: str) -> None:
        """Notes a row that could not even be read."""
        self.out.num_read += 1
        self._note(place, reason, value, problem, remedy, True)

    def keep(self, line: bytes, number: int) -> None:
        """Keeps the canonical form of a row."""
        self.text += line
        self.digests += blake2b(line, digest_size=8).digest()
        self.out.places.append(number)

    def finish(self) -> Checked:
        """What was found; called once, at the end."""
        self.out.marks.frombytes(self.digests)
        self.out.text = self.text
        return self.out

    def take(self, word: str, number: int, fields: Mapping[str, Any]) -> None:
        """Checks one row; its place is a word and a number, such as `line 7`."""
        out = self.out
        out.num_read += 1
        try:
            if self.rules.mapping:
                fields = _mapped(fields, self.rules.mapping)
            normal = normalise(fields, self.rules.row_format)
            if normal.row_format != out.row_format:
                self._first_format(normal)
            line = orjson.dumps(normal.body, option=orjson.OPT_APPEND_NEWLINE)
        except (RowError, TypeError) as error:
            self._refused(f"{word} {number}", error)
            return
        self.keep(line, number)
        if normal.has_empty_answer or normal.num_characters > LONG_CHARACTERS:
            self._warn(f"{word} {number}", normal)
        if b"\\u0000" in line or b"\xef\xbf\xbd" in line:
            self._note(
                f"{word} {number}", "TEXT_DAMAGED", "",
                "holds NUL or replacement characters", "look where the text was decoded wrongly", False,
            )  # fmt: skip
        if len(fields) > len(normal.used):
            out.unused |= fields.keys() - normal.used
        self._see_columns(normal)

    def _see_columns(self, normal: Normal) -> None:
        if normal.row_format != RECORD and self.out.columns:
            return
        for name in normal.body:
            if name not in self._columns and len(self._columns) < _MOST_COLUMNS:
                self._columns.add(name)
                self.out.columns.append(name)

    def _first_format(self, normal: Normal) -> None:
        if self.out.row_format:
            raise RowError(
                "SHAPE_MIXED",
                "",
                ", ".join(sorted(normal.used)),
                f"is a row of {normal.row_format} among rows of {self.out.row_format}",
                "put conversations and plain texts into datasets of their own",
            )
        self.out.row_format = normal.row_format

    def _refused(self, place: str, error: Exception) -> None:
        if isinstance(error, RowError):
            where = f"{place}, {error.field_name}" if error.field_name else place
            self._note(where, error.reason, _shown(error.value), error.problem, error.remedy, True)
        else:  # orjson: text with a lone surrogate, a number of more than 64 bits
            remedy = "write numbers below 2^63 and valid UTF-8"
            self._note(place, "FIELD_TYPE", "", f"cannot be written as JSON: {error}", remedy, True)

    def _warn(self, place: str, normal: Normal) -> None:
        if normal.has_empty_answer:
            self._note(place, "ANSWER_EMPTY", "", "an answer is empty", "fill it or drop the row", False)
        if (size := normal.num_characters) > LONG_CHARACTERS:
            remedy = "split it, or raise max_length"
            self._note(place, "ROW_LONG", str(size), f"{size} characters will be cut", remedy, False)

    def _note(self, place: str, reason: str, value: str, problem: str, remedy: str, error: bool) -> None:
        self.out.counts[reason, error] += 1
        if self._kept[error] < MOST:
            self._kept[error] += 1
            self.out.found.append((place, reason, value, problem, remedy, error))


def _mapped(fields: Mapping[str, Any], mapping: Mapping[str, str]) -> Mapping[str, Any]:
    """The row with mapped columns under their canonical names."""
    taken = set(mapping.values())
    found = {name: value for name, value in fields.items() if name not in taken and name not in mapping}
    for canonical, column in mapping.items():
        if column not in fields:
            raise RowError(
                "FIELD_MISSING",
                column,
                ", ".join(sorted(map(str, fields)))[:200],
                f"is missing, and is mapped to {canonical}",
                "map a column that every row has",
            )
        found[canonical] = fields[column]
    return found


def _shown(value: object) -> str:
    return str(value)[:200].encode(errors="replace").decode()
