"""Loss on the held-out examples. It draws nothing at random, so it cannot disturb the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tunesmith_trainer.data import Example
from tunesmith_trainer.model import Model, Scorer
from tunesmith_trainer.phase import Phase
from tunesmith_trainer.recipe import Recipe


def held_out_loss(
    model: Model,
    scorer: Scorer,
    recipe: Recipe,
    examples: Sequence[Example],
    batch_size: int,
    enter: Callable[[Phase], None],
) -> float:
    """Mean loss a label token over all examples; `enter` hears each phase and may end the evaluation."""
    total, weight = 0.0, 0
    enter(Phase.VAL_START_EPOCH)
    model.module.eval()
    try:
        with torch.no_grad(), model.autocast():
            for first in range(0, len(examples), batch_size):
                enter(Phase.VAL_BATCH_LOAD)
                batch = recipe.collate(examples[first : first + batch_size]).to(model.device)
                enter(Phase.VAL_BATCH_FORWARD)
                loss, count = recipe.loss(scorer, batch)
                total += float(loss)
                weight += count
                enter(Phase.VAL_BATCH_END)
    finally:
        model.module.train()
    return total / weight
