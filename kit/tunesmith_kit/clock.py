"""Time as the services see it, so that tests can steer it."""

import time
from datetime import UTC, datetime
from typing import Protocol


def utc(time: datetime) -> datetime:
    """Returns a time that was stored with its zone, which is UTC: SQLite gives times back without it."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


class Clock(Protocol):
    """Two clocks: one for people, one for durations."""

    def now(self) -> datetime:
        """Returns the time of day, in UTC. It may jump; measure no durations with it."""
        ...

    def monotonic(self) -> float:
        """Returns seconds since some moment; never jumps."""
        ...


class SystemClock:
    """The clocks of the machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()
