"""A stream that goes on by revision after any disconnect.

Every Watch rpc takes `from_revision` and says in each message up to which revision everything was sent. So a
stream that broke is opened again from the last revision seen: nothing is lost, nothing comes twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Protocol, TypeVar

import grpc.aio

from tunesmith.connection import ATTEMPTS, Connection, pauses
from tunesmith.errors import DeadlineExceeded, TunesmithError, Unavailable


class Revised(Protocol):
    """A message of a Watch stream."""

    @property
    def revision(self) -> int: ...


M = TypeVar("M", bound=Revised)
Opener = Callable[[int], AsyncIterator[M]]


async def follow(
    connection: Connection,
    open_stream: Opener[M],
    *,
    from_revision: int = 0,
    finished: Callable[[], bool] = lambda: False,
    on_gap: Callable[[TunesmithError | None], None] = lambda error: None,
) -> AsyncGenerator[M, None]:
    """Yields the messages of `open_stream(revision)`, opened again after each disconnect.

    It ends when the server ends the stream while `finished()` holds. A server that cannot be reached at the
    beginning is an error as in any call; once a message has come, the stream waits for its return for ever.
    `on_gap` hears of each disconnect (None: the server ended the stream in order).
    """
    revision, reached, failures = from_revision, False, 0
    waits = pauses()
    while True:
        error: TunesmithError | None = None
        try:
            async for message in open_stream(revision):
                revision, reached, failures = max(revision, message.revision), True, 0
                waits = pauses()
                yield message
        except grpc.aio.AioRpcError as failure:
            error = connection.explain(failure)
            if not _passing(failure, error):
                raise error from None
        if error is None and finished():
            return
        failures += 1
        if not reached and error is not None and failures == ATTEMPTS:
            raise error
        on_gap(error)
        await asyncio.sleep(next(waits))


def _passing(failure: grpc.aio.AioRpcError, error: TunesmithError) -> bool:
    """Tells whether a disconnect may pass: the server is away, or cut the stream to drain or for its age."""
    if isinstance(error, Unavailable | DeadlineExceeded):
        return True
    # A connection reset under a stream comes as CANCELLED, INTERNAL or UNKNOWN with RST_STREAM in its text.
    return failure.code() is grpc.StatusCode.CANCELLED or "RST_STREAM" in (failure.details() or "")
