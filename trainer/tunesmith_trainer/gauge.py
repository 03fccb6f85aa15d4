"""How fast a run goes, how long it has taken and what it takes: for status.json, never part of the state."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import torch

from tunesmith_trainer.flops import Work

_STATM = Path("/proc/self/statm")


class Gauge:
    """Figures of one attempt; times in seconds.

    Args:
        work: what the model's passes cost.
        peak: FLOP/s of all the attempt's GPUs together; None when not known.
    """

    def __init__(self, work: Work, peak: float | None = None) -> None:
        self.began = time.monotonic()
        self.tokens_per_second: float | None = None
        self.seconds_per_step: float | None = None
        self.tflops: float | None = None
        self._work, self._peak = work, peak
        self._window_start = self.began
        self._window = (0, 0, 0)

    def begin(self) -> None:
        """Training begins: what loading took does not count."""
        self.began = self._window_start = time.monotonic()

    @property
    def training_seconds(self) -> float:
        """How long this attempt has trained."""
        return time.monotonic() - self.began

    @property
    def mfu(self) -> float | None:
        """Share of the GPUs' peak that is used, as of the last reading; None when the peak is not known."""
        if self._peak is None or self.tflops is None:
            return None
        return self.tflops * 1e12 / self._peak

    def step(self, seconds: float, sizes: tuple[int, int, int]) -> bool:
        """Count a step of so many label tokens, tokens and examples; gives whether it was the first."""
        first = self.seconds_per_step is None
        pace = seconds if self.seconds_per_step is None else self.seconds_per_step
        self.seconds_per_step = pace + 0.1 * (seconds - pace)
        labels, tokens, examples = self._window
        self._window = (labels + sizes[0], tokens + sizes[1], examples + sizes[2])
        return first

    def read(self) -> float:
        """Tokens a second since the last reading."""
        now = time.monotonic()
        seconds = max(now - self._window_start, 1e-9)
        labels, tokens, examples = self._window
        self.tokens_per_second = tokens / seconds
        self.tflops = self._work.flops(tokens, labels, examples) / seconds / 1e12
        self.restart(now)
        return self.tokens_per_second

    def figures(self, device: torch.device) -> dict[str, object]:
        """The figures of status.json, with what this process takes; no wait for the device, about 10 µs."""
        cuda = device.type == "cuda"
        return {
            "tokens_per_second": self.tokens_per_second,
            "seconds_per_step": self.seconds_per_step,
            "tflops": self.tflops,
            "mfu": self.mfu,
            "gpu_memory_peak_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
            "gpu_memory_total_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else None,
            "resident_bytes": _resident(),
        }

    def restart(self, now: float | None = None) -> None:
        """What was done since the last reading is not of training."""
        self._window_start, self._window = now or time.monotonic(), (0, 0, 0)


def _resident() -> int | None:
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):  # not Linux
        return None
