"""The learning rate as a function of the step: no scheduler, hence no scheduler state."""

from __future__ import annotations

import math

from tunesmith_trainer.run import Scheduler, Training


def learning_rate(training: Training, total_steps: int, step: int) -> float:
    """Rate of step `step` (from 0): up a line over the warm-up, then along the schedule towards zero."""
    peak, warmup = training.learning_rate, training.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    # The first step after the warm-up has the peak, the one after the last would have zero.
    part = (step - warmup) / max(1, total_steps - warmup)
    if training.lr_scheduler is Scheduler.LINEAR:
        return peak * (1 - part)
    if training.lr_scheduler is Scheduler.COSINE:
        return peak * 0.5 * (1 + math.cos(math.pi * part))
    return peak
