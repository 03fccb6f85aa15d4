"""How often training may be held up: the controller of snapshots and checkpoints."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_REMEMBERED = 5
_TELLING = 3  # costs from which a median tells more than the least


class Pace:
    """Allows something that holds training up for at most `share` of the time, as measured.

    The cost is the median of the last few, and the least of the first two: one copy that had to wait for the
    processor must not stop the next ones. A share of 1 or more is no limit.
    """

    def __init__(
        self, share: float, least_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._share = share
        self._least = least_seconds
        self._costs: deque[float] = deque(maxlen=_REMEMBERED)
        self._next = clock() + least_seconds
        self.total_seconds = 0.0

    def due(self) -> bool:
        """Whether it may be done now."""
        return (self._share >= 1 and not self._least) or self._clock() >= self._next

    def interval(self) -> float:
        """Seconds from one to the next."""
        if not self._costs:
            return self._least
        cost = min(self._costs) if len(self._costs) < _TELLING else statistics.median(self._costs)
        return max(self._least, cost / self._share)

    def put_off(self, seconds: float) -> None:
        """Not before so many seconds from now."""
        self._next = self._clock() + seconds

    @contextmanager
    def spending(self, *, measured: bool = True) -> Iterator[None]:
        """Count the time of the block; one that is not `measured` says nothing of the next one's cost."""
        start = self._clock()
        try:
            yield
        finally:
            end = self._clock()
            self.total_seconds += end - start
            if measured:
                self._costs.append(end - start)
            self._next = end + self.interval()
