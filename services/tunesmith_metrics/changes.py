"""What was stored after a revision, page by page, and then what is stored from now on."""

from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

from tunesmith_kit.db import Database, current_revision
from tunesmith_kit.watch import CommitSignal, Fetch, follow
from tunesmith_metrics.tables import REVISION

T = TypeVar("T")


async def changes(
    db: Database, signal: CommitSignal, fetch: Fetch[T], revision: int
) -> AsyncIterator[tuple[Sequence[T], int]]:
    """Yields what `fetch` finds after a revision, and the revision reached; nothing as a heartbeat."""
    newest = await db.read(lambda session: current_revision(session, REVISION))
    if revision > newest:  # known from before a backup was restored: what it meant is gone
        revision = 0
    while True:
        found, reached = await fetch(revision)
        if not found:
            break
        revision = reached
        yield found, revision
    async for found, reached in follow(signal, fetch, revision):
        yield found, reached
