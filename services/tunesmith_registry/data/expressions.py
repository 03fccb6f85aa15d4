"""Conditions on rows: `label = "spam" and length(text) < 2000 and not text ~ "(?i)lorem"`.

Columns, texts, numbers, `true`, `false`, `null`; `= != < <= > >=`, `~` (regular expression, linear in time),
`in (…)`; `length`, `words`, `lower`; `and`, `or`, `not`, parentheses. A column with odd characters stands in
backticks. A comparison with a column that a row does not have is false.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import re2

from tunesmith.errors import InvalidArgument

Value = Callable[[Mapping[str, Any]], Any]
Condition = Callable[[Mapping[str, Any]], bool]
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>-?\d+(?:\.\d+)?)|(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|`(?P<quoted>[^`]+)`"""
    r"""|(?P<word>[^\W\d][\w.-]*)|(?P<sign><=|>=|!=|[=<>~(),]))"""
)
_DEEPEST = 50
_CONSTANTS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def parse(text: str) -> tuple[Condition, set[str]]:
    """A condition, and the columns it reads.

    Raises:
        InvalidArgument: it cannot be read; the message says where.
    """
    parser = _Parser(text)
    condition = parser.either(0)
    if parser.peek().kind != "end":
        raise parser.error(f"{parser.peek().text!r} is not expected here")
    return condition, parser.columns


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._tokens = list(self._split())
        self.columns: set[str] = set()

    def _split(self) -> list[_Token]:
        found, at, end = [], 0, len(self._text.rstrip())
        while at < end:
            match = _TOKEN.match(self._text, at)
            if match is None or match.lastgroup is None:
                raise _bad(self._text, at, f"{self._text[at:].strip()[:10]!r} is not understood")
            found.append(_Token(match.lastgroup, match.group(match.lastgroup), match.start(match.lastgroup)))
            at = match.end()
        return [*found, _Token("end", "the end", end)]

    def peek(self) -> _Token:
        return self._tokens[self._at]

    def error(self, problem: str) -> InvalidArgument:
        return _bad(self._text, self.peek().at, problem)

    def _take(self, *texts: str) -> str:
        """The next token's text if it is one of these words or signs; else nothing."""
        token = self.peek()
        if token.kind in ("word", "sign") and token.text.lower() in texts:
            self._at += 1
            return token.text.lower()
        return ""

    def _need(self, sign: str) -> None:
        if not self._take(sign):
            raise self.error(f"{sign!r} is missing")

    def either(self, depth: int) -> Condition:
        found = [self._both(depth)]
        while self._take("or"):
            found.append(self._both(depth))
        return found[0] if len(found) == 1 else lambda row: any(part(row) for part in found)

    def _both(self, depth: int) -> Condition:
        found = [self._one(depth)]
        while self._take("and"):
            found.append(self._one(depth))
        return found[0] if len(found) == 1 else lambda row: all(part(row) for part in found)

    def _one(self, depth: int) -> Condition:
        if depth > _DEEPEST:
            raise self.error(f"it is nested deeper than {_DEEPEST}")
        if self._take("not"):
            inner = self._one(depth + 1)
            return lambda row: not inner(row)
        if self._take("("):
            inner = self.either(depth + 1)
            self._need(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Condition:
        left = self._value()
        if self._take("in"):
            self._need("(")
            wanted = [self._literal()]
            while self._take(","):
                wanted.append(self._literal())
            self._need(")")
            return lambda row: left(row) in wanted
        sign = self._take("=", "!=", "<", "<=", ">", ">=", "~")
        if not sign:
            return lambda row: bool(left(row))
        if sign == "~":
            pattern = self._pattern()
            return lambda row: isinstance(value := left(row), str) and pattern.search(value) is not None
        right = self._value()
        return _compared(left, sign, right)

    def _pattern(self) -> Any:
        token = self.peek()
        if token.kind != "text":
            raise self.error("a regular expression in quotes is missing")
        try:
            pattern = re2.compile(self._literal())
        except re2.error as error:
            raise self.error(f"this is no regular expression: {error}") from error
        return pattern

    def _value(self) -> Value:
        token = self.peek()
        if token.kind in ("number", "text") or (token.kind == "word" and token.text.lower() in _CONSTANTS):
            constant = self._literal()
            return lambda row: constant
        if token.kind not in ("word", "quoted"):
            raise self.error(f"a column or a value is missing before {token.text!r}")
        self._at += 1
        function = _FUNCTIONS.get(token.text) if token.kind == "word" else None
        if function is not None and self._take("("):
            inner = self._value()
            self._need(")")
            return lambda row: function(inner(row))
        name = token.text
        self.columns.add(name)
        return lambda row: row.get(name) if name in row else _nested(row, name)

    def _literal(self) -> Any:
        token = self.peek()
        self._at += 1
        if token.kind == "number":
            return float(token.text) if "." in token.text else int(token.text)
        if token.kind == "text":
            # Only the quote and the backslash are escaped, so that regular expressions stand as they are.
            return re.sub(r"\\([\"'\\])", r"\1", token.text[1:-1])
        if token.kind == "word" and token.text.lower() in _CONSTANTS:
            return _CONSTANTS[token.text.lower()]
        self._at -= 1
        raise self.error("a text, a number, true, false or null is missing")


def _nested(row: Mapping[str, Any], name: str) -> Any:
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _compared(left: Value, sign: str, right: Value) -> Condition:
    if sign == "=":
        return lambda row: bool(left(row) == right(row))
    if sign == "!=":
        return lambda row: bool(left(row) != right(row))
    tests: dict[str, Callable[[Any, Any], bool]] = {
        "<": lambda a, b: a < b, "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    }  # fmt: skip
    test = tests[sign]

    def compare(row: Mapping[str, Any]) -> bool:
        try:
            return bool(test(left(row), right(row)))
        except TypeError:  # text against number, or nothing
            return False

    return compare


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, str | list | dict) else None


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "length": _length,
    "words": lambda value: len(value.split()) if isinstance(value, str) else None,
    "lower": lambda value: value.lower() if isinstance(value, str) else None,
}


def _bad(text: str, at: int, problem: str) -> InvalidArgument:
    return InvalidArgument(
        "EXPRESSION_INVALID",
        f"the condition cannot be read at character {at + 1}: {problem}",
        field="filter.expression",
        value=text[:200],
        remedy='write for example: label = "spam" and length(text) < 2000 and not text ~ "(?i)lorem"',
    )
