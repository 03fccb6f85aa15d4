"""Following the log of a job to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from tunesmith.api.metrics.v1 import metrics_pb2
from tunesmith.api.metrics.v1.metrics_pb2 import LogLine
from tunesmith.connection import Connection
from tunesmith.watch import follow

# The agent ships a log within 0.2 s; so long after the end of a job nothing more can come.
_QUIET_SECONDS = 2.0


async def log_pages(
    core: Connection, request: metrics_pb2.QueryLogsRequest, tail: int | None
) -> AsyncIterator[metrics_pb2.QueryLogsResponse]:
    """Yields pages of a log: all of it, or its last `tail` lines."""
    request.page_size = 10_000 if tail is None else min(max(tail, 1), 10_000)
    request.tail = tail is not None
    async for page in core.pages(core.logs.QueryLogs, request):
        yield page
        if tail is not None:
            return


async def tail_log(
    core: Connection, name: str, revision: int, end: Awaitable[None], ended: Callable[[], bool]
) -> AsyncGenerator[LogLine, None]:
    """Yields new lines of the job `name` until `end` comes and its log is quiet (or ended by the server)."""

    def opened(after: int) -> AsyncIterator[metrics_pb2.TailLogsResponse]:
        request = metrics_pb2.TailLogsRequest(parent=name, from_revision=after)
        return aiter(core.logs.TailLogs(request, metadata=core.metadata))

    ending = asyncio.ensure_future(end)
    lines = follow(core, opened, from_revision=revision, finished=ended)
    try:
        async for message in _until_quiet(lines, ending):
            for line in message.lines:
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
