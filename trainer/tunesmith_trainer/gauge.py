"""How fast a run goes, and how long it has taken: for status.json, never part of the state."""

from __future__ import annotations

import time


class Gauge:
    """Times of one attempt, in seconds."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.tokens_per_second: float | None = None
        self.seconds_per_step: float | None = None
        self._window_start = self.began
        self._window_tokens = 0

    def begin(self) -> None:
        """Training begins: what loading took does not count."""
        self.began = self._window_start = time.monotonic()

    @property
    def training_seconds(self) -> float:
        """How long this attempt has trained."""
        return time.monotonic() - self.began

    def step(self, seconds: float, num_tokens: int) -> bool:
        """Count a step; gives whether it was the first."""
        first = self.seconds_per_step is None
        pace = seconds if self.seconds_per_step is None else self.seconds_per_step
        self.seconds_per_step = pace + 0.1 * (seconds - pace)
        self._window_tokens += num_tokens
        return first

    def read(self) -> float:
        """Tokens a second since the last reading."""
        now = time.monotonic()
        self.tokens_per_second = self._window_tokens / max(now - self._window_start, 1e-9)
        self.restart(now)
        return self.tokens_per_second

    def restart(self, now: float | None = None) -> None:
        """What was done since the last reading is not of training."""
        self._window_start, self._window_tokens = now or time.monotonic(), 0
