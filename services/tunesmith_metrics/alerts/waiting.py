"""Parts of a rank's records that wait: for those before them, or for the event that says whose they are.

The bus may store a rank's batches out of order when it delivers some again. A rule about the mean of points
must see them in order, so what comes too early waits here, in memory; the engine's row says how far
everything was judged, and after a crash the parts are read again from there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tunesmith_metrics.alerts.reading import Part

_LONGEST_SECONDS = 60.0  # then what is missing is taken for lost


@dataclass(slots=True)
class _Queue:
    since: float
    parts: dict[int, Part] = field(default_factory=dict)


class Waiting:
    """Queues of parts by subject and mark."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._queues: dict[tuple[str, str], _Queue] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def holds(self, subject: str, mark: str) -> bool:
        """Whether parts of this rank wait already."""
        return (subject, mark) in self._queues

    def add(self, part: Part) -> None:
        """Keeps a part."""
        queue = self._queues.setdefault((part.subject, part.mark), _Queue(self._clock()))
        known = queue.parts.get(part.first)
        if known is None or known.end < part.end:
            queue.parts[part.first] = part

    def ready(self, subject: str, mark: str, expected: int) -> Iterator[Part]:
        """Takes out the parts that follow on `expected`, in order."""
        queue = self._queues.get((subject, mark))
        while queue is not None and queue.parts and (first := min(queue.parts)) <= expected:
            part = queue.parts.pop(first)
            expected = max(expected, part.end)
            if not queue.parts:
                del self._queues[subject, mark]
            yield part

    def overdue(self) -> list[tuple[str, str, int]]:
        """Subject, mark and first number of the queues that waited too long."""
        late = self._clock() - _LONGEST_SECONDS
        return [(*key, min(q.parts)) for key, q in self._queues.items() if q.since <= late]

    def all_of(self, subject: str) -> list[tuple[str, int]]:
        """Mark and first number of the queues of a subject."""
        return [(mark, min(q.parts)) for (name, mark), q in self._queues.items() if name == subject]

    def revision(self) -> int | None:
        """The oldest revision of what waits; None when nothing does."""
        found = [part.revision for queue in self._queues.values() for part in queue.parts.values()]
        return min(found, default=None)
