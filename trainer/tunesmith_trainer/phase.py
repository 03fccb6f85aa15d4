"""The phases of a run, in the order they are passed."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Where a run is. status.json and the traces carry these names."""

    INIT = "INIT"
    TRAIN_START_EPOCH = "TRAIN_START_EPOCH"
    TRAIN_BATCH_LOAD = "TRAIN_BATCH_LOAD"
    TRAIN_BATCH_FORWARD = "TRAIN_BATCH_FORWARD"
    TRAIN_BATCH_BACKWARD = "TRAIN_BATCH_BACKWARD"
    TRAIN_BATCH_OPTIM_STEP = "TRAIN_BATCH_OPTIM_STEP"
    SCHEDULER_BATCH_STEP = "SCHEDULER_BATCH_STEP"
    TRAIN_BATCH_END = "TRAIN_BATCH_END"
    SCHEDULER_EPOCH_STEP = "SCHEDULER_EPOCH_STEP"
    VAL_START_EPOCH = "VAL_START_EPOCH"
    VAL_BATCH_LOAD = "VAL_BATCH_LOAD"
    VAL_BATCH_FORWARD = "VAL_BATCH_FORWARD"
    VAL_BATCH_END = "VAL_BATCH_END"
    EPOCH_END = "EPOCH_END"
    TRAINING_COMPLETE = "TRAINING_COMPLETE"
    EVALUATE = "EVALUATE"
    EXPORT = "EXPORT"


# From the optimizer's first write until the step is committed and reported, memory holds half a step: a stop
# waits. Everywhere else it may drop what was computed since the last commit: replay gives the same bits.
UNINTERRUPTIBLE = frozenset(
    {
        Phase.TRAIN_BATCH_OPTIM_STEP,
        Phase.SCHEDULER_BATCH_STEP,
        Phase.TRAIN_BATCH_END,
        Phase.SCHEDULER_EPOCH_STEP,
    }
)
