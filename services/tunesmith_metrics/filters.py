"""The language of run filters: `train/loss < 1.2 and adapter.lora.r = 16 and not label.team = search`.

    condition  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation   = "not" negation | "(" condition ")" | "has" name | name comparison
    comparison = ("=" | "!=" | "<" | "<=" | ">" | ">=") value | "~" text | "in" "(" value { "," value } ")"
    name       = word | `any text` | ("min" | "max") "(" name ")"

Every mistake names its column, counted from 1, and what was expected there.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

import re2

from tunesmith.errors import InvalidArgument

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<quoted>`[^`]*`)
    | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<mark><=|>=|!=|[=<>~(),])
    | (?P<word>[^\s`"'<>=!~(),]+)
    )""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_WORDS = {"nan": math.nan, "inf": math.inf, "+inf": math.inf, "-inf": -math.inf}
_COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")
_RESERVED = ("and", "or", "not", "in", "has")
_DEEPEST = 50
_PATTERN_MEMORY = 8 << 20

Value = float | str


@dataclass(frozen=True, slots=True)
class Name:
    """What is compared: the last value of a metric, or a field; with `extreme` (`min` or `max`) that of a
    metric. `column` is where it stands, counted from 1."""

    text: str
    extreme: str
    column: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison with one value, or for `in` with several. `texts` are the values as they were written."""

    name: Name
    operator: str
    values: tuple[Value, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """A regular expression that must be found in a text."""

    name: Name
    pattern: "re2._Regexp"


@dataclass(frozen=True, slots=True)
class Has:
    """Whether there is a value."""

    name: Name


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    inner: "Condition"


@dataclass(frozen=True, slots=True)
class Both:
    """All of them."""

    parts: tuple["Condition", ...]


@dataclass(frozen=True, slots=True)
class Either:
    """At least one of them."""

    parts: tuple["Condition", ...]


Condition = Comparison | Match | Has | Not | Both | Either


@dataclass(frozen=True, slots=True)
class Order:
    """One key of an order."""

    name: Name
    descending: bool


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # quoted, text, mark, word or end
    text: str
    column: int


def parse(text: str) -> Condition | None:
    """Returns what a filter says; None for an empty one.

    Raises:
        InvalidArgument: it breaks the grammar; the message names the column.
    """
    reader = _Reader(text, "filter")
    if reader.next.kind == "end":
        return None
    found = reader.condition(0)
    reader.end("and, or, or the end")
    return found


def parse_order(text: str) -> list[Order]:
    """Returns the keys of an order such as `train/loss, created desc`.

    Raises:
        InvalidArgument: it breaks the grammar; the message names the column.
    """
    reader = _Reader(text, "order_by")
    orders: list[Order] = []
    while reader.next.kind != "end":
        name = reader.name()
        descending = reader.takes("desc")
        if not descending:
            reader.takes("asc")
        orders.append(Order(name, descending))
        if not reader.takes(","):
            break
        if reader.next.kind == "end":
            reader.refuse("a name")
    reader.end("asc, desc, a comma or the end")
    return orders


class _Reader:
    """Reads tokens from left to right."""

    def __init__(self, text: str, field: str) -> None:
        self._field, self._text = field, text
        self._tokens = _tokens(text, field)
        self._at = 0

    @property
    def next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self.next
        self._at += 1
        return token

    def takes(self, text: str) -> bool:
        """Goes on behind a word or mark if it comes next."""
        token = self.next
        found = token.kind in ("word", "mark") and token.text.lower() == text
        self._at += found
        return found

    def end(self, expected: str) -> None:
        if self.next.kind != "end":
            self.refuse(expected)

    def refuse(self, expected: str) -> NoReturn:
        token = self.next
        found = "the end" if token.kind == "end" else repr(token.text)
        raise _error(self._field, self._text, token.column, f"expected {expected}, found {found}")

    def condition(self, depth: int) -> Condition:
        if depth > _DEEPEST:
            self.refuse(f"at most {_DEEPEST} levels of parentheses and not")
        parts = [self._conjunction(depth)]
        while self.takes("or"):
            parts.append(self._conjunction(depth))
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _conjunction(self, depth: int) -> Condition:
        parts = [self._negation(depth)]
        while self.takes("and"):
            parts.append(self._negation(depth))
        return parts[0] if len(parts) == 1 else Both(tuple(parts))

    def _negation(self, depth: int) -> Condition:
        if self.takes("not"):
            if depth >= _DEEPEST:
                self.refuse(f"at most {_DEEPEST} levels of parentheses and not")
            return Not(self._negation(depth + 1))
        if self.takes("("):
            inner = self.condition(depth + 1)
            self._mark(")")
            return inner
        if self.takes("has"):
            return Has(self.name())
        return self._comparison()

    def _comparison(self) -> Condition:
        name = self.name()
        if self.takes("~"):
            return Match(name, self._pattern())
        if self.takes("in"):
            self._mark("(")
            items = [self._value()]
            while self.takes(","):
                items.append(self._value())
            self._mark(")")
            return Comparison(name, "in", tuple(v for v, _ in items), tuple(text for _, text in items))
        if self.next.kind != "mark" or self.next.text not in _COMPARISONS:
            self.refuse("one of = != < <= > >= ~ in")
        operator = self._take().text
        value, text = self._value()
        return Comparison(name, operator, (value,), (text,))

    def name(self) -> Name:
        token = self.next
        if token.kind == "quoted" and len(token.text) > 2:
            self._at += 1
            return Name(token.text[1:-1], "", token.column)
        if token.kind != "word" or token.text.lower() in _RESERVED:
            self.refuse("a name")
        self._at += 1
        if token.text.lower() in ("min", "max") and self.takes("("):
            inner = self.name()
            if inner.extreme:
                raise _error(self._field, self._text, inner.column, "expected a metric")
            self._mark(")")
            return Name(inner.text, token.text.lower(), token.column)
        return Name(token.text, "", token.column)

    def _mark(self, text: str) -> None:
        if not self.takes(text):
            self.refuse(repr(text))

    def _value(self) -> tuple[Value, str]:
        token = self.next
        if token.kind == "text":
            self._at += 1
            return _unquoted(token.text), _unquoted(token.text)
        if token.kind != "word" or token.text.lower() in _RESERVED:
            self.refuse("a number, a text, true, false or NaN")
        self._at += 1
        if _NUMBER.fullmatch(token.text):
            return float(token.text), token.text
        return _WORDS.get(token.text.lower(), token.text), token.text

    def _pattern(self) -> "re2._Regexp":
        token = self.next
        if token.kind not in ("text", "word"):
            self.refuse("a regular expression in quotes")
        self._at += 1
        text = _unquoted(token.text) if token.kind == "text" else token.text
        options = re2.Options()
        options.log_errors = False
        options.max_mem = _PATTERN_MEMORY
        try:
            return re2.compile(text, options)
        except re2.error as error:
            said = error.args[0] if error.args else ""
            words = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
            raise _error(
                self._field, self._text, token.column, f"the regular expression is wrong: {words}"
            ) from None


def _tokens(text: str, field: str) -> list[_Token]:
    found: list[_Token] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at, end)
        if match is None:
            column = at + len(text[at:]) - len(text[at:].lstrip())
            raise _error(field, text, column + 1, f"{text[column]!r} begins nothing that is known here")
        kind = str(match.lastgroup)
        found.append(_Token(kind, match.group(kind), match.start(kind) + 1))
        at = match.end()
    return [*found, _Token("end", "", end + 1)]


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)


def moment(text: str) -> float | None:
    """Returns a date, or a date and time, as Unix time in seconds (UTC if it says no zone); else None."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _error(field: str, text: str, column: int, problem: str) -> InvalidArgument:
    return InvalidArgument(
        "FILTER_INVALID",
        f"{field}, column {column}: {problem}",
        field=field,
        value=text,
        remedy="for example: train/loss < 1.2 and adapter.lora.r = 16 and state = SUCCEEDED",
    )


def refuse(field: str, name: Name, text: str, problem: str) -> InvalidArgument:
    """Returns the error for a name that cannot be used as it is."""
    return _error(field, text, name.column, problem)


def names(condition: Condition | None) -> Sequence[Name]:
    """Returns every name of a condition, from left to right."""
    if condition is None:
        return ()
    if isinstance(condition, Comparison | Match | Has):
        return (condition.name,)
    if isinstance(condition, Not):
        return names(condition.inner)
    return [name for part in condition.parts for name in names(part)]
