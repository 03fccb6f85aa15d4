"""The log of a job: asked for by page, and followed to the job's end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2
from tunesmith.api.metrics.v1.metrics_pb2 import LogLine
from tunesmith.connection import Connection
from tunesmith.errors import InvalidArgument
from tunesmith.watch import follow

# The agent ships a log within 0.2 s; so long after the end of a job nothing more can come.
_QUIET_SECONDS = 2.0
_LARGEST_PAGE = 10_000
LEVELS = ("debug", "info", "warning", "error", "critical")


@dataclass(frozen=True)
class LogFilter:
    """Which lines of a log are wanted. What is empty or 0 wants all."""

    contains: str = ""
    pattern: str = ""
    ignore_case: bool = False
    level: str = ""
    ranks: Sequence[int] = ()
    epoch: int = 0
    since: datetime | timedelta | None = None
    min_step: int = 0

    def request(self, parent: str) -> metrics_pb2.QueryLogsRequest:
        """Returns the request for a page."""
        request = metrics_pb2.QueryLogsRequest(
            parent=parent, epoch=self.epoch, min_step=self.min_step, **self._of_both()
        )
        start = moment(self.since)
        if start is not None:
            request.start_time.CopyFrom(start)
        return request

    def tail_request(self, parent: str, revision: int) -> metrics_pb2.TailLogsRequest:
        """Returns the request for what is stored after a revision."""
        return metrics_pb2.TailLogsRequest(parent=parent, from_revision=revision, **self._of_both())

    def keeps(self, line: LogLine) -> bool:
        """Whether a followed line is wanted, as far as the server was not asked for that."""
        return self.epoch in (0, line.epoch) and line.step >= self.min_step

    def _of_both(self) -> dict[str, Any]:
        return {
            "contains": self.contains,
            "pattern": self.pattern,
            "ignore_case": self.ignore_case,
            "min_level": _level(self.level),
            "ranks": self.ranks,
        }


def _level(word: str) -> events_pb2.LogLevel.ValueType:
    if word and word.lower() not in LEVELS:
        raise InvalidArgument(
            "FIELD_INVALID", "there is no such level", field="level", value=word,
            remedy=f"say {', '.join(LEVELS)}",
        )  # fmt: skip
    return events_pb2.LogLevel.Value(f"LOG_LEVEL_{word.upper() or 'UNSPECIFIED'}")


def moment(since: datetime | timedelta | None) -> Timestamp | None:
    """Returns a time, or so long ago, as the contract has it; times without a zone are local."""
    if since is None:
        return None
    time = datetime.now(UTC) - since if isinstance(since, timedelta) else since.astimezone(UTC)
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


async def log_pages(
    core: Connection, request: metrics_pb2.QueryLogsRequest, tail: int | None
) -> AsyncIterator[metrics_pb2.QueryLogsResponse]:
    """Yields pages of a log, the oldest lines first: all of it, or its last `tail` lines."""
    if tail is None:
        request.page_size = _LARGEST_PAGE
        async for page in core.pages(core.logs.QueryLogs, request):
            yield page
        return
    request.tail = True
    pages: list[metrics_pb2.QueryLogsResponse] = []
    missing = max(tail, 1)
    while missing > 0:  # the server may have looked through as much as it does at once before it found all
        request.page_size = min(missing, _LARGEST_PAGE)
        page = await core.call(core.logs.QueryLogs, request)
        pages.append(page)
        missing -= len(page.lines)
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    for page in reversed(pages):
        yield page


async def tail_log(
    core: Connection,
    name: str,
    wanted: LogFilter,
    revision: int,
    end: Awaitable[None],
    ended: Callable[[], bool],
) -> AsyncGenerator[LogLine, None]:
    """Yields new lines of the job `name` until `end` comes and its log is quiet (or ended by the server)."""

    def opened(after: int) -> AsyncIterator[metrics_pb2.TailLogsResponse]:
        return aiter(core.logs.TailLogs(wanted.tail_request(name, after), metadata=core.metadata))

    ending = asyncio.ensure_future(end)
    lines = follow(core, opened, from_revision=revision, finished=ended)
    try:
        async for message in _until_quiet(lines, ending):
            for line in filter(wanted.keeps, message.lines):
                yield line
    finally:
        ending.cancel()
        await lines.aclose()


async def _until_quiet(
    messages: AsyncGenerator[metrics_pb2.TailLogsResponse, None], ending: asyncio.Future[None]
) -> AsyncGenerator[metrics_pb2.TailLogsResponse, None]:
    """Passes messages on until `ending` is done and then no line has come for `_QUIET_SECONDS`."""
    clock = asyncio.get_running_loop().time
    following = asyncio.ensure_future(_next(messages))
    last_line = clock()
    try:
        while True:
            waiting: set[asyncio.Future[Any]] = {following} if ending.done() else {following, ending}
            patience = max(0.0, last_line + _QUIET_SECONDS - clock()) if ending.done() else None
            done, _ = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if following in done:
                message = following.result()
                if message is None:
                    return
                if message.lines:
                    last_line = clock()
                    yield message
                following = asyncio.ensure_future(_next(messages))
            elif ending in done:
                ending.result()
                last_line = clock()
            else:
                return
    finally:
        following.cancel()
        await asyncio.wait({following})


async def _next(
    messages: AsyncGenerator[metrics_pb2.TailLogsResponse, None],
) -> metrics_pb2.TailLogsResponse | None:
    return await anext(messages, None)
