"""Which numbers of a sequence are stored: all below a mark, and islands above it.

Batches come more than once, out of order, and cut differently after a restart of the agent. What is new of a
batch is what no stored batch covers; the watermark is where the first gap begins.
"""

from bisect import insort
from collections.abc import Iterable

Interval = tuple[int, int]


class Coverage:
    """Half-open intervals of stored numbers. `next` is the first number that is not stored."""

    def __init__(self, next_number: int, islands: Iterable[Interval] = ()) -> None:
        self.next = next_number
        self._islands = sorted(islands)
        self._advance()

    def add(self, start: int, end: int) -> list[Interval]:
        """Enters `[start, end)` and returns the parts of it that were not there before."""
        if start == self.next and not self._islands:  # nearly always
            self.next = end
            return [(start, end)]
        parts = self._missing(max(start, self.next), end)
        for part in parts:
            insort(self._islands, part)
        self._advance()
        return parts

    def _missing(self, start: int, end: int) -> list[Interval]:
        parts = []
        for low, high in self._islands:
            if high <= start:
                continue
            if low >= end:
                break
            if low > start:
                parts.append((start, low))
            start = max(start, high)
        if start < end:
            parts.append((start, end))
        return parts

    def _advance(self) -> None:
        while self._islands and self._islands[0][0] <= self.next:
            self.next = max(self.next, self._islands.pop(0)[1])
