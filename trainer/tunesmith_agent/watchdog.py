"""Tells a trainer that hangs from one that is slow."""

import statistics
from collections import deque
from datetime import timedelta
from typing import Any

_LEAST_SECONDS = 120.0
_MEDIANS = 20
# Loading a large model and exporting it pass no phase boundary for long; nor does a judge that is slow, or a
# batch of long answers.
_QUIET_PHASES = {"INIT": 1800.0, "TRAINING_COMPLETE": 1800.0, "EVALUATE": 1800.0, "EXPORT": 1800.0}
_LONGEST_LOOK = 1.0


class Watchdog:
    """Hears of each look at `status.json`. Time counts only while we look: a machine or agent that slept must
    not take the trainer's sleep for a hang."""

    def __init__(self, timeout: timedelta) -> None:
        self._timeout = timeout.total_seconds()
        self._seen: tuple[Any, ...] = ()
        self._still = 0.0
        self._last_look: float | None = None
        self._step: tuple[int, float] | None = None
        self._paces: deque[float] = deque(maxlen=64)

    def stalled_for(self, status: dict[str, Any], now: float) -> float:
        """Returns for how many seconds nothing has moved if that is too long, else 0.

        Args:
            status: `status.json` as it is now.
            now: the monotonic clock, seconds.
        """
        elapsed = min(now - self._last_look, _LONGEST_LOOK) if self._last_look is not None else 0.0
        self._last_look = now
        seen = (status.get("time"), status.get("step"), status.get("phase"))
        if seen != self._seen:
            self._seen, self._still = seen, 0.0
            self._measure(int(status.get("step") or 0), float(status.get("time") or 0.0))
            return 0.0
        self._still += elapsed
        return self._still if self._still > self.limit(str(status.get("phase") or "INIT")) else 0.0

    def limit(self, phase: str) -> float:
        """Returns how long nothing may move in this phase, seconds."""
        if phase in _QUIET_PHASES:
            return max(_QUIET_PHASES[phase], self._timeout)
        if self._timeout:
            return self._timeout
        median = statistics.median(self._paces) if self._paces else 0.0
        return max(_LEAST_SECONDS, _MEDIANS * median)

    def _measure(self, step: int, time: float) -> None:
        if self._step is not None and step > self._step[0]:
            self._paces.append((time - self._step[1]) / (step - self._step[0]))
        if self._step is None or step != self._step[0]:
            self._step = (step, time)
