"""Watch streams: first what changed since a revision, then each change, with heartbeats."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from tunesmith_kit.db import Database

T = TypeVar("T")
_POLL_SECONDS = 1.0  # finds the commits of other replicas
_HEARTBEAT_SECONDS = 15.0


class CommitSignal:
    """Wakes watchers after each commit of this process."""

    def __init__(self, db: Database) -> None:
        self._event = asyncio.Event()
        db.on_commit(self._fire)

    def _fire(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    def arm(self) -> asyncio.Event:
        """Returns an event that the next commit sets; take it before reading."""
        return self._event


Fetch = Callable[[int], Awaitable[tuple[Sequence[T], int]]]


async def follow(
    signal: CommitSignal, fetch: Fetch[T], revision: int
) -> AsyncIterator[tuple[Sequence[T], int]]:
    """Yields (what changed after the last revision, new revision), and an empty batch as heartbeat.

    The first batch comes at once, even when it is empty, so that a client knows where it stands.
    """
    loop = asyncio.get_running_loop()
    last_sent = float("-inf")
    while True:
        armed = signal.arm()
        before = revision
        items, revision = await fetch(revision)
        if items or loop.time() - last_sent > _HEARTBEAT_SECONDS:
            yield items, revision
            last_sent = loop.time()
        if items and revision > before:
            continue  # there may be a further page
        try:
            async with asyncio.timeout(_POLL_SECONDS):
                await armed.wait()
        except TimeoutError:
            continue
