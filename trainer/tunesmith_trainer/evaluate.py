"""Loss on the held-out examples. It draws nothing at random, so it cannot disturb the training."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tunesmith_trainer.phase import Phase
from tunesmith_trainer.session import Session
from tunesmith_trainer.state import Progress

Exchange = Callable[[torch.Tensor], list[float]]


def held_out_loss(
    session: Session, progress: Progress, enter: Callable[[Phase], None], exchange: Exchange
) -> float:
    """Mean loss a label token over all held-out examples.

    It goes on at the micro-batch `progress.evaluated`; what is summed up to there is part of the state. In
    each round every rank takes one micro-batch, and `exchange` gives the losses of all. `enter` hears each
    phase and may end the evaluation.
    """
    model, group, examples = session.model, session.group, session.held_out
    size = session.run.spec.training.micro_batch_size
    firsts = range(0, len(examples), size)
    enter(Phase.VAL_START_EPOCH)
    model.module.eval()
    try:
        with torch.no_grad(), model.autocast():
            while progress.evaluated < len(firsts):
                enter(Phase.VAL_BATCH_LOAD)
                part = firsts[progress.evaluated : progress.evaluated + group.world_size]
                loss = torch.zeros((), device=model.device)
                if group.rank < len(part):
                    first = part[group.rank]
                    batch = session.recipe.collate(examples[first : first + size]).to(model.device)
                    enter(Phase.VAL_BATCH_FORWARD)
                    loss = session.recipe.loss(session.scorer, batch)[0]
                for value in exchange(loss)[: len(part)]:  # in the order of the micro-batches
                    progress.eval_sum += value
                progress.evaluated += len(part)
                enter(Phase.VAL_BATCH_END)
    finally:
        model.module.train()
    return progress.eval_sum / sum(example.weight for example in examples)
