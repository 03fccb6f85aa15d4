"""The weight of log lines, read from the lines themselves: common formats, JSON, and Python's tracebacks."""

import re
from typing import TypeAlias

from tunesmith.api.metrics.v1 import events_pb2

Level: TypeAlias = events_pb2.LogLevel.ValueType

_UNKNOWN = events_pb2.LOG_LEVEL_UNSPECIFIED
_DEBUG, _INFO = events_pb2.LOG_LEVEL_DEBUG, events_pb2.LOG_LEVEL_INFO
_WARNING, _ERROR = events_pb2.LOG_LEVEL_WARNING, events_pb2.LOG_LEVEL_ERROR
_CRITICAL = events_pb2.LOG_LEVEL_CRITICAL

_WORDS: dict[str, Level] = {
    "TRACE": _DEBUG,
    "DEBUG": _DEBUG,
    "INFO": _INFO,
    "NOTICE": _INFO,
    "WARN": _WARNING,
    "WARNING": _WARNING,
    "ERR": _ERROR,
    "ERROR": _ERROR,
    "EXCEPTION": _ERROR,
    "SEVERE": _ERROR,
    "CRITICAL": _CRITICAL,
    "ALERT": _CRITICAL,
    "FATAL": _CRITICAL,
    "PANIC": _CRITICAL,
    "EMERGENCY": _CRITICAL,
}
_LETTERS: dict[str, Level] = {"I": _INFO, "W": _WARNING, "E": _ERROR, "F": _CRITICAL, "C": _CRITICAL}
_WORD = "|".join(sorted(_WORDS, key=len, reverse=True))
# Looked for where formats put it: not in the middle of what a line says.
_HEAD = 120
_IN_JSON = re.compile(r'"(?:level|levelname|severity|lvl|log_level)"\s*:\s*"?(\w+)', re.IGNORECASE)
_NAMED = re.compile(r"\b(?:level|severity|lvl)=\"?(\w+)", re.IGNORECASE)
_CAPITALS = re.compile(rf"(?<![\w-])({_WORD})(?![\w-])")
_SMALL = re.compile(rf"(?:[\[(<]\s*)({_WORD})\s*[\])>]|^({_WORD}):", re.IGNORECASE)
_GLOG = re.compile(r"\[?([IWEF])(?:\d{4}|\d{8}) \d\d:\d\d:\d\d")
# `ValueError: …`, `torch.OutOfMemoryError: …`, `file.py:12: UserWarning: …`
_CLASS = re.compile(r"(?:^|[\s.:])[A-Z]\w*?(Error|Exception|Interrupt|Warning)(?::|$)")
_PLAIN = re.compile(
    r"^(?:CUDA error|Segmentation fault|Killed\b|Aborted\b|terminate called|Fatal Python error|"
    r"\S+: fatal error|No space left on device|(?:.*: )?command not found)",
)
# Without any of these a line is of no format but the two that are looked for first: most lines say nothing.
_HINTS = (
    *(
        "TRACE",
        "DEBUG",
        "INFO",
        "NOTICE",
        "WARN",
        "ERR",
        "EXCEPT",
        "SEVER",
        "CRIT",
        "ALERT",
        "FATAL",
        "PANIC",
    ),
    *("EMERG", "INTERRUPT", "LEVEL", "LVL"),
)
_RANK = re.compile(r"\[rank\d+\]:\s?")
_TRACEBACK = "Traceback (most recent call last):"
_BETWEEN = ("During handling of the above exception", "The above exception was the direct cause")


class LevelReader:
    """Tells the level of each line of one log, which it must be given in order: every line of a traceback is
    an error, up to the one that names the exception."""

    def __init__(self) -> None:
        self._inside = False
        self._after = False  # right behind a traceback: another may follow from it

    def read(self, line: str) -> Level:
        """Returns the level of the next line."""
        bare = _RANK.sub("", line, count=1) if line.startswith("[rank") else line
        if bare.lstrip(" +|").startswith(_TRACEBACK):
            self._inside = True
            return _ERROR
        if self._inside:
            self._inside = not bare or bare[0].isspace()
            self._after = not self._inside
            return _ERROR
        if self._after and (not bare.strip() or bare.startswith(_BETWEEN)):
            return _ERROR
        self._after = False
        return level_of(bare)


def level_of(line: str) -> Level:
    """Returns the level a line alone tells; UNSPECIFIED when it tells none."""
    head = line[:_HEAD]
    capitals = head.upper()
    if not any(hint in capitals for hint in _HINTS):
        found = _GLOG.match(head)
        return _LETTERS[found[1]] if found else _ERROR if _PLAIN.match(head) else _UNKNOWN
    if line.startswith("{") and (found := _IN_JSON.search(line)):
        return _of_json(found[1])
    if found := _GLOG.match(head):
        return _LETTERS[found[1]]
    if found := _CAPITALS.search(head):
        return _WORDS[found[1]]
    if found := _NAMED.search(head):
        return _WORDS.get(found[1].upper(), _UNKNOWN)
    if found := _SMALL.search(head):
        return _WORDS[(found[1] or found[2]).upper()]
    if found := _CLASS.search(head):
        return _WARNING if found[1] == "Warning" else _ERROR
    return _ERROR if _PLAIN.match(head) else _UNKNOWN


def _of_json(word: str) -> Level:
    if not word.isdigit():
        return _WORDS.get(word.upper(), _UNKNOWN)
    number = int(word)  # 10 to 50 as in Python's logging; 60 is fatal where that is counted on
    if number < 20:
        return _DEBUG
    return next(level for low, level in _NUMBERS if number >= low)


_NUMBERS = ((50, _CRITICAL), (40, _ERROR), (30, _WARNING), (20, _INFO))
