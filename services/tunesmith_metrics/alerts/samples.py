"""Samples: what rules look at, in the form in which they look at it. All times are Unix microseconds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from tunesmith.api.metrics.v1 import events_pb2

_MOST_SEEN = 10_000
_seen: dict[tuple[str, ...], tuple[str, ...]] = {}


@dataclass(slots=True)
class Records:
    """Metric records of one rank that share one set of keys, in order. Rows are unpacked when first read."""

    epoch: int
    rank: int
    keys: tuple[str, ...]
    values: Sequence[float]
    step_deltas: Sequence[int]
    time_deltas_us: Sequence[int]
    start: int = 0  # rows before it were judged already
    _steps: list[int] = field(default_factory=list)
    _last_step: int | None = None
    _times: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.step_deltas) - self.start

    @property
    def steps(self) -> list[int]:
        """Step of each row."""
        if not self._steps:
            self._steps = list(accumulate(self.step_deltas))[self.start :]
        return self._steps

    @property
    def last_step(self) -> int:
        """Largest step."""
        if self._last_step is None:
            self._last_step = max(self.steps)
        return self._last_step

    @property
    def times_us(self) -> list[int]:
        """Time of each row."""
        if not self._times:
            self._times = list(accumulate(self.time_deltas_us))[self.start :]
        return self._times

    def column(self, index: int) -> Sequence[float]:
        """Values of one column."""
        width = len(self.keys)
        return self.values[index + self.start * width :: width]


@dataclass(frozen=True, slots=True)
class Lines:
    """Log lines of one rank that were read together, as (weight, text)."""

    time_us: int
    lines: Sequence[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True, slots=True)
class Change:
    """A job or node went to another state. `terminal`: nothing follows."""

    time_us: int
    state: str
    terminal: bool = False


Sample = Records | Lines | Change


def records(batch: events_pb2.MetricBatch, first_seq: int = 0) -> Iterator[Records]:
    """The records of a batch from a sequence number on, matrix by matrix."""
    names, seq = batch.keys, batch.first_seq
    for matrix in batch.matrices:
        rows = len(matrix.step_deltas)
        skipped = min(max(first_seq - seq, 0), rows)
        seq += rows
        if skipped < rows and matrix.key_indices:
            keys = tuple([names[index] for index in matrix.key_indices])
            yield Records(
                batch.epoch,
                batch.rank,
                _shared(keys),
                list(matrix.values),  # slices of a list cost a tenth of those of a message's field
                matrix.step_deltas,
                matrix.time_deltas_us,
                skipped,
            )


def _shared(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The same object for the same keys, so that whoever sees them again need not compare them."""
    if len(_seen) > _MOST_SEEN:
        _seen.clear()
    return _seen.setdefault(keys, keys)


def lines(chunk: events_pb2.LogChunk, offset: int = 0) -> Lines:
    """The lines of a chunk that begin at a byte of the log or behind it."""
    levels = chunk.levels or [0] * len(chunk.lines)
    found = zip(levels, chunk.lines, chunk.line_offsets, strict=False)
    return Lines(chunk.time_us, [(level, text) for level, text, place in found if place >= offset])
