"""How far a program is, as its records tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tunesmith.api.jobs.v1 import state_pb2

_LOSSES = ("train/loss", "loss", "train_loss", "train.loss")


@dataclass
class Pace:
    """How far a program is, as its records tell: step, loss, and the time to the end when that is known."""

    total_steps: int = 0
    step: int = 0
    loss: float = math.nan
    first_loss: float = math.nan
    _began: tuple[int, int] | None = None  # step and time of the first record
    _now: tuple[int, int] = (0, 0)

    def take(self, record: dict[str, Any]) -> None:
        """Takes a metric record in."""
        now = (int(record["step"]), int(record["time"]))
        self._began = self._began or now
        self.step, self._now = max(self.step, now[0]), now
        for key in _LOSSES:
            if key in record["values"]:
                self.loss = float(record["values"][key])
                if math.isnan(self.first_loss):
                    self.first_loss = self.loss
                break

    def progress(self) -> state_pb2.Progress | None:
        """Returns it as the contract has it; None before the first record."""
        if self._began is None:
            return None
        total = self.total_steps if self.total_steps >= self.step else 0  # it went further than it said
        progress = state_pb2.Progress(step=self.step, total_steps=total, time=stamp(self._now[1]))
        if not math.isnan(self.loss):
            progress.loss, progress.first_loss = self.loss, self.first_loss
        steps, micros = self._now[0] - self._began[0], self._now[1] - self._began[1]
        if self.total_steps > self.step and steps > 0 and micros > 0:
            rest = (self.total_steps - self.step) * micros // steps
            progress.eta.CopyFrom(Duration(seconds=rest // 1_000_000))
        return progress


def stamp(micros: int) -> Timestamp:
    """Returns a time given in Unix microseconds."""
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)
