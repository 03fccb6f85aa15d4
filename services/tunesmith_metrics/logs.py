"""Logs: pages, search and tail over stored chunks.

What is known of a whole chunk narrows a search before its lines are looked at, and a request looks at 64 MB
at most: then it answers with what it found and a token to go on from there.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import re2
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Row, Select, select, tuple_
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_metrics.tables import LOG_CHUNKS

_MAX_RESPONSE_BYTES = 8 * 1024 * 1024
_MAX_SCAN_BYTES = 64 * 1024 * 1024
_LONGEST_LINE = 16 * 1024
_LINE_OVERHEAD = 40
_CHUNKS_AT_ONCE = 32
# What a pattern may say so that it could match a line, but not the same line among others.
_LONELY = re.compile(r"\\[Az]|\(\?[a-zA-Z]*-")


class Wanted(Protocol):
    """What the requests of both calls say of the lines wanted."""

    contains: str
    pattern: str
    ignore_case: bool
    min_level: events_pb2.LogLevel.ValueType

    @property
    def ranks(self) -> Sequence[int]:
        """Ranks wanted; empty: all."""
        ...


@dataclass(frozen=True)
class Filter:
    """Which lines are wanted. Times are Unix times in microseconds; zeros and empty fields want all."""

    contains: str = ""
    pattern: str = ""
    ignore_case: bool = False
    min_level: int = 0
    ranks: frozenset[int] = frozenset()
    epoch: int = 0
    start_us: int = 0
    end_us: int = 0
    min_step: int = 0
    _line: Any = field(init=False, repr=False)
    _chunk: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        alone = self.pattern and _LONELY.search(self.pattern)
        object.__setattr__(self, "_line", self._compile(self.pattern))
        object.__setattr__(self, "_chunk", None if alone else self._compile(f"(?m){self.pattern}"))
        if self.ignore_case:
            object.__setattr__(self, "contains", self.contains.casefold())

    @classmethod
    def of(cls, request: Wanted) -> "Filter":
        """Returns what a request wants; `InvalidArgument` for a wrong pattern or times in disorder."""
        fields: dict[str, Any] = {}
        if isinstance(request, metrics_pb2.QueryLogsRequest):
            start, end = _microseconds(request.start_time), _microseconds(request.end_time)
            if end and start > end:
                raise InvalidArgument(
                    "FIELD_INVALID",
                    "the end lies before the start",
                    field="end_time",
                    value=request.end_time.ToJsonString(),
                    remedy="give an end_time after start_time, or leave it out",
                )
            fields = {
                "epoch": request.epoch,
                "start_us": start,
                "end_us": end,
                "min_step": request.min_step,
            }
        return cls(
            contains=request.contains,
            pattern=request.pattern,
            ignore_case=request.ignore_case,
            min_level=request.min_level,
            ranks=frozenset(request.ranks),
            **fields,
        )

    def _compile(self, pattern: str) -> Any:
        if not self.pattern:
            return None
        options = re2.Options()
        options.log_errors = False
        options.case_sensitive = not self.ignore_case
        try:
            return re2.compile(pattern, options)
        except re2.error as error:
            what = error.args[0].decode(errors="replace") if error.args else "unknown"
            raise InvalidArgument(
                "FIELD_INVALID",
                f"the pattern is no regular expression: {what}",
                field="pattern",
                value=self.pattern,
                remedy="write it in RE2 syntax, or use `contains` for a plain text",
            ) from None

    def narrow(self, query: Select[Any]) -> Select[Any]:
        """Leaves chunks out that cannot hold a line wanted."""
        chunk = LOG_CHUNKS.c
        limits = (
            (self.epoch, chunk.epoch == self.epoch),
            (self.ranks, chunk.rank.in_(self.ranks)),
            (self.min_level, chunk.max_level >= self.min_level),
            (self.min_step, chunk.max_step >= self.min_step),
            (self.start_us, chunk.time_us >= self.start_us),
            (self.end_us, chunk.time_us < self.end_us),
        )
        return query.where(*(condition for wanted, condition in limits if wanted))

    def lines(self, payload: bytes) -> Iterator[metrics_pb2.LogLine]:
        """Yields the lines wanted of a stored chunk; too long ones are cut with a mark."""
        if self.contains and not self.ignore_case and self.contains.encode() not in payload:
            return
        chunk = events_pb2.LogChunk.FromString(payload)
        if self.ranks and chunk.rank not in self.ranks:
            return
        lines = list(chunk.lines)
        if self._chunk is not None and self._chunk.search("\n".join(lines)) is None:
            return
        levels, steps = list(chunk.levels), list(chunk.steps)
        for index, text in enumerate(lines):
            level = levels[index] if levels else 0
            step = steps[index] if steps else 0
            if level >= self.min_level and step >= self.min_step and self._has_text(text):
                yield _line(chunk, index, level, step)

    def _has_text(self, text: str) -> bool:
        if self.contains and self.contains not in (text.casefold() if self.ignore_case else text):
            return False
        return self._line is None or self._line.search(text) is not None


def _line(chunk: events_pb2.LogChunk, index: int, level: Any, step: int) -> metrics_pb2.LogLine:
    text = chunk.lines[index]
    if len(text) > _LONGEST_LINE + 100:  # the agent cuts too, and marks it
        text = text[:_LONGEST_LINE] + " … (cut)"
    line = metrics_pb2.LogLine(
        epoch=chunk.epoch,
        rank=chunk.rank,
        offset=chunk.line_offsets[index],
        text=text,
        level=level,
        step=step,
    )
    line.time.FromMicroseconds(chunk.time_us)
    return line


def _microseconds(time: Timestamp) -> int:
    return max(time.ToMicroseconds(), 0)


@dataclass(frozen=True, slots=True)
class _Cursor:
    """A line in the order of a job's lines: its chunk's place and its own offset. `back`: to older ones."""

    back: bool
    epoch: int
    sort_us: int
    rank: int
    chunk_offset: int
    line_offset: int

    def __str__(self) -> str:
        where = (self.epoch, self.sort_us, self.rank, self.chunk_offset, self.line_offset)
        return ".".join(str(part) for part in (int(self.back), *where))


@dataclass(frozen=True, slots=True)
class Page:
    """Lines of a page, oldest first. `cursor` leads to the next page; empty when there is none. `before`
    leads the other way, from the line that was found first; empty without lines."""

    lines: list[metrics_pb2.LogLine]
    cursor: str
    before: str


def query(session: Session, job_id: str, wanted: Filter, *, page_size: int, cursor: str, tail: bool) -> Page:
    """Returns a page of the lines wanted, the first ones or with `tail` the last ones.

    Lines come by attempt, then as they were read on the nodes, and those of one rank always in their order. A
    page may hold fewer lines than asked for, and still have a next one: of a tail that is the one before it.
    """
    after = _parse_cursor(cursor)
    back = tail if after is None else after.back
    lines: list[metrics_pb2.LogLine] = []
    size = scanned = 0
    last, before = after, ""
    for row in _chunks(session, job_id, wanted, after, back):
        for line in _in_order(wanted.lines(row.payload), back):
            if _is_before(row, line, after):
                continue
            if len(lines) == page_size or size > _MAX_RESPONSE_BYTES:
                return _page(lines, before, last)
            lines.append(line)
            place = (row.epoch, row.sort_us, row.rank, row.offset, line.offset)
            before, last = before or str(_Cursor(not back, *place)), _Cursor(back, *place)
            size += len(line.text) + _LINE_OVERHEAD
        scanned += len(row.payload)
        if scanned > _MAX_SCAN_BYTES:
            beyond = row.offset - 1 if back else row.offset + row.num_bytes
            place = (row.epoch, row.sort_us, row.rank, row.offset, beyond)
            return _page(lines, before, _Cursor(back, *place))
    return _page(lines, before, None, back)


def _page(lines: list[metrics_pb2.LogLine], before: str, last: _Cursor | None, back: bool = False) -> Page:
    back = last.back if last is not None else back
    return Page(lines[::-1] if back else lines, str(last) if last is not None else "", before)


def _in_order(lines: Iterator[metrics_pb2.LogLine], back: bool) -> Iterator[metrics_pb2.LogLine]:
    return reversed(list(lines)) if back else lines


def _is_before(row: Row[Any], line: metrics_pb2.LogLine, after: _Cursor | None) -> bool:
    """Whether an earlier page held the line."""
    if after is None or (row.epoch, row.rank, row.offset) != (after.epoch, after.rank, after.chunk_offset):
        return False
    return line.offset >= after.line_offset if after.back else line.offset <= after.line_offset


def _chunks(
    session: Session, job_id: str, wanted: Filter, after: _Cursor | None, back: bool
) -> Iterator[Row[Any]]:
    """The chunks that may hold lines wanted, from the cursor's on."""
    chunk = LOG_CHUNKS.c
    order = (chunk.epoch, chunk.sort_us, chunk.rank, chunk.offset)
    found = select(*order, chunk.num_bytes, chunk.payload).where(chunk.job_id == job_id)
    if after is not None:
        place = tuple_(after.epoch, after.sort_us, after.rank, after.chunk_offset)
        found = found.where(tuple_(*order) <= place if back else tuple_(*order) >= place)
    found = wanted.narrow(found).order_by(*(column.desc() if back else column for column in order))
    with session.execute(found.execution_options(yield_per=_CHUNKS_AT_ONCE)) as rows:
        yield from rows  # type: ignore[misc]  # of columns given as a list sqlalchemy knows no types


def _parse_cursor(cursor: str) -> _Cursor | None:
    if not cursor:
        return None
    try:
        back, *where = (int(part) for part in cursor.split("."))
        return _Cursor(bool(back), *where)
    except (ValueError, TypeError):
        raise InvalidArgument(
            "PAGE_TOKEN_INVALID",
            "the page token was not made for this list",
            field="page_token",
            value=cursor,
            remedy="give back next_page_token as it was, or leave it out for the first page",
        ) from None
