"""Random alterations of what the model reads, word dropout and NEFTune, each with its own random stream."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from tunesmith_trainer.data import Item, Packed
from tunesmith_trainer.model import Model
from tunesmith_trainer.seeds import Domain, derive, generator


def drop_words(item: Item, probability: float, vocabulary: int, seed: int, draw: int) -> Item:
    """The example with some of its input tokens replaced by random ones; what is asked for stays.

    `draw` is the example's number over all epochs: no other example, worker or rank enters.
    """
    dice = generator(seed, Domain.WORD_DROPOUT, draw)
    inputs = item.inputs
    hit = dice.random(len(inputs)) < probability
    words = dice.integers(0, vocabulary, len(inputs))
    return Packed(np.where(hit, words, inputs), item.positions, item.targets, item.starts)


class Neftune:
    """Uniform noise on the embeddings in training (Jain et al. 2023), up to alpha / sqrt(tokens x width)."""

    def __init__(self, model: Model, alpha: float, seed: int) -> None:
        self._alpha, self._seed = alpha, seed
        self._module = model.module
        self._generator = torch.Generator(model.device)
        model.causal.get_input_embeddings().register_forward_hook(self._add)

    def begin(self, micro: int) -> None:
        """Seed the noise of one micro-batch."""
        self._generator.manual_seed(derive(self._seed, Domain.NEFTUNE, micro))

    def _add(self, module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor | None:
        if not self._module.training:
            return None
        size = self._alpha / math.sqrt(output.shape[1] * output.shape[2])
        noise = torch.empty_like(output).uniform_(-size, size, generator=self._generator)
        return output + noise
