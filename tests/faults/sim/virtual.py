"""Virtual time: an event loop whose clock jumps to the next thing to do; a minute costs milliseconds."""

import asyncio
import random
import selectors
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any


class _Jumping(selectors.SelectSelector):
    """Never waits: the time it was to wait is added to the loop's clock."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "the simulation waits for something that can never come"
        self.loop.seconds += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time. Nothing in it may wait for a thread or a socket."""

    def __init__(self) -> None:
        selector = _Jumping()
        self.seconds = 1000.0
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.seconds

    def run_in_executor(  # type: ignore[override]  # the work has only positional arguments here
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> "asyncio.Future[Any]":
        """Does a thread's work at once: a real thread would take as long as the machine likes, and the story
        would not be the same when it is told again."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class VirtualClock:
    """The services' clock: durations from the loop, the time of day with jumps."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop, self._offset = loop, timedelta()
        # A fixed day, after any on which this runs: what the machine's own clock calls old is never ours.
        self._start = datetime(2090, 1, 1, tzinfo=UTC)

    def jump(self, hours: float) -> None:
        """Moves the time of day, as a wrong time server would."""
        self._offset += timedelta(hours=hours)

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._loop.time()) + self._offset

    def monotonic(self) -> float:
        return self._loop.time()


class VirtualIds:
    """Stands for the modules `time` and `os` in the maker of ids: the same seed makes the same ids."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._ticks = rng, 0

    def time_ns(self) -> int:
        """Returns a time that moves on a millisecond with each id."""
        self._ticks += 1_000_000
        return 1_700_000_000_000_000_000 + self._ticks

    def urandom(self, size: int) -> bytes:
        """Returns bytes of the seed's."""
        return self._rng.randbytes(size)
