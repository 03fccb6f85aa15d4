"""Waiting for what must happen, with a deadline instead of a guess."""

import asyncio
import time
from collections.abc import Awaitable, Callable

DEADLINE_SECONDS = 90.0  # of a machine that has much else to do


async def until(condition: Callable[[], object], what: str, deadline: float = DEADLINE_SECONDS) -> None:
    """Returns once `condition()` is true; fails the test after `deadline` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline} s for {what}"
        await asyncio.sleep(0.01)


async def until_async(
    condition: Callable[[], Awaitable[object]], what: str, deadline: float = DEADLINE_SECONDS
) -> None:
    """As `until`, for a condition that has to be asked for."""
    end = time.monotonic() + deadline
    while not await condition():
        assert time.monotonic() < end, f"waited {deadline} s for {what}"
        await asyncio.sleep(0.02)
