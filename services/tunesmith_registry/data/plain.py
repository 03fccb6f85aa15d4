"""Conversations that are canonical as they stand, which is true of nine rows in ten: the short way through.

What is taken here is what `Checker.take` would have taken, at a third of the time; whatever is not sure
goes the long way.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import orjson

from tunesmith_registry.data.checking import LONG_CHARACTERS, Checker
from tunesmith_registry.data.rows import MESSAGES

_ROLES = frozenset({"system", "user", "assistant"})

Take = Callable[[int, bytes, Any], bool]


def taker(checker: Checker, data: bytes) -> Take:
    """The function that takes one row of `data` if it is sure: its place, its line, and what that holds."""
    # There may be NUL or replacement characters. One byte is found ten times as fast as two.
    doubtful = (b"\\" in data and b"\\u" in data) or (b"\xef" in data and b"\xef\xbf\xbd" in data)
    if checker.rules.mapping or checker.out.row_format not in ("", MESSAGES):
        return lambda number, line, fields: False
    out, dumps, newline = checker.out, orjson.dumps, orjson.OPT_APPEND_NEWLINE
    add_text, add_digest, add_place = checker.text.extend, checker.digests.extend, out.places.append

    def take(number: int, line: bytes, fields: Any) -> bool:
        turns = fields.get("messages") if type(fields) is dict and len(fields) == 1 else None
        if type(turns) is not list or not _plain(turns):
            return False
        canonical = dumps(fields, option=newline)
        # With the separators JSON writers use, its length shows that no key stood twice in the line.
        more = len(line) - len(canonical)
        if more and more != 4 * len(turns):
            return False
        if doubtful and (b"\\u0000" in canonical or b"\xef\xbf\xbd" in canonical):
            return False
        if out.row_format != MESSAGES:
            if out.row_format:
                return False
            out.row_format = MESSAGES
        if not out.columns:
            out.columns.append("messages")
        out.num_read += 1
        add_text(canonical)
        add_digest(blake2b(canonical, digest_size=8).digest())
        add_place(number)
        return True

    return take


def _plain(turns: list[Any]) -> bool:
    """Whether turns are canonical and nothing about them is doubtful."""
    length, answered = 0, False
    try:
        for turn in turns:
            role, text = turn["role"], turn["content"]
            if type(text) is not str or len(turn) > 2 or role not in _ROLES or next(iter(turn)) != "role":
                return False
            length += len(text)
            if role == "assistant":
                if not text or text.isspace():
                    return False
                answered = True
    except (KeyError, TypeError):
        return False
    return answered and length <= LONG_CHARACTERS
