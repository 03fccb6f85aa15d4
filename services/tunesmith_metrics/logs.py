"""Logs: pages, search and tail over stored chunks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_metrics.tables import LOG_CHUNKS

_MAX_RESPONSE_BYTES = 8 * 1024 * 1024
_LONGEST_LINE = 16 * 1024
_LINE_OVERHEAD = 40


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a chunk lies in the order of all chunks of a job."""

    epoch: int
    time_us: int
    rank: int
    offset: int


@dataclass(frozen=True, slots=True)
class Page:
    """Lines of a page, oldest first. `cursor` leads to the next page; empty when there is none."""

    lines: list[metrics_pb2.LogLine]
    cursor: str


def query(
    session: Session, job_id: str, *, epoch: int, contains: str, page_size: int, cursor: str, tail: bool
) -> Page:
    """Returns a page of lines that contain a text, or the last ones.

    Lines come by attempt, then as they were read on the nodes, and those of one rank always in their order.
    """
    places = _places(session, job_id, epoch)
    if tail:
        return Page(_last(session, job_id, places, contains, page_size), "")
    after = _parse_cursor(cursor)
    lines: list[metrics_pb2.LogLine] = []
    size = 0
    for line in _lines(session, job_id, _from(places, after)):
        if after is not None and not _is_after(line, after):
            continue
        if contains in line.text:
            if len(lines) == page_size or size > _MAX_RESPONSE_BYTES:
                last = lines[-1]
                return Page(lines, f"{last.epoch}.{last.rank}.{last.offset}")
            lines.append(line)
            size += len(line.text) + _LINE_OVERHEAD
    return Page(lines, "")


def _places(session: Session, job_id: str, epoch: int) -> list[_Place]:
    chunk = LOG_CHUNKS.c
    found = select(chunk.epoch, chunk.time_us, chunk.rank, chunk.offset).where(chunk.job_id == job_id)
    if epoch:
        found = found.where(chunk.epoch == epoch)
    newest_first = found.order_by(chunk.epoch, chunk.rank, chunk.offset.desc())
    places: list[_Place] = []
    rank, time_us = (-1, -1), 0
    for row in session.execute(newest_first):
        # A chunk that was sent again was read later than those behind it: it counts as read with the next.
        same_rank = rank == (row.epoch, row.rank)
        rank, time_us = (row.epoch, row.rank), min(time_us, row.time_us) if same_rank else row.time_us
        places.append(_Place(row.epoch, time_us, row.rank, row.offset))
    return sorted(places, key=lambda p: (p.epoch, p.time_us, p.rank, p.offset))


def _from(places: Sequence[_Place], after: tuple[int, int, int] | None) -> Sequence[_Place]:
    """The places from that on which holds the cursor's line."""
    if after is None:
        return places
    epoch, rank, offset = after
    holding = [i for i, p in enumerate(places) if (p.epoch, p.rank) == (epoch, rank) and p.offset <= offset]
    return places[holding[-1] :] if holding else places


def _is_after(line: metrics_pb2.LogLine, after: tuple[int, int, int]) -> bool:
    epoch, rank, offset = after
    return (line.epoch, line.rank) != (epoch, rank) or line.offset > offset


def _parse_cursor(cursor: str) -> tuple[int, int, int] | None:
    if not cursor:
        return None
    try:
        epoch, rank, offset = (int(part) for part in cursor.split("."))
    except ValueError:
        raise InvalidArgument(
            "PAGE_TOKEN_INVALID",
            "the page token was not made for this list",
            field="page_token",
            value=cursor,
            remedy="give back next_page_token as it was, or leave it out for the first page",
        ) from None
    return epoch, rank, offset


def _last(
    session: Session, job_id: str, places: Sequence[_Place], contains: str, page_size: int
) -> list[metrics_pb2.LogLine]:
    found: list[metrics_pb2.LogLine] = []
    size = 0
    for place in reversed(places):
        for line in reversed(list(_lines(session, job_id, [place]))):
            if contains in line.text:
                found.append(line)
                size += len(line.text) + _LINE_OVERHEAD
                if len(found) == page_size or size > _MAX_RESPONSE_BYTES:
                    return found[::-1]
    return found[::-1]


def _lines(session: Session, job_id: str, places: Iterable[_Place]) -> Iterator[metrics_pb2.LogLine]:
    chunk = LOG_CHUNKS.c
    for place in places:
        payload = session.execute(
            select(chunk.payload).where(
                chunk.job_id == job_id,
                chunk.epoch == place.epoch,
                chunk.rank == place.rank,
                chunk.offset == place.offset,
            )
        ).scalar_one()
        yield from lines(events_pb2.LogChunk.FromString(payload))


def lines(chunk: events_pb2.LogChunk) -> Iterator[metrics_pb2.LogLine]:
    """The lines of a chunk; too long ones are cut with a mark."""
    for text, offset in zip(chunk.lines, chunk.line_offsets, strict=True):
        line = metrics_pb2.LogLine(epoch=chunk.epoch, rank=chunk.rank, offset=offset, text=text)
        if len(text) > _LONGEST_LINE:
            line.text = text[:_LONGEST_LINE] + " … (cut)"
        line.time.FromMicroseconds(chunk.time_us)
        yield line
