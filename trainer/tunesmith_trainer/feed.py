"""The training data as the loop asks for it: items, what they weigh, and their micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith_trainer.data import Batch, Course, Example, Item, Micro
from tunesmith_trainer.model import Model
from tunesmith_trainer.noise import Neftune, drop_words
from tunesmith_trainer.packing import join, plan
from tunesmith_trainer.recipe import Recipe
from tunesmith_trainer.run import Training
from tunesmith_trainer.seeds import Domain, seed_torch


class Feed:
    """Pure functions of (data, seed, number of the micro-batch); nothing is drawn beforehand or kept."""

    def __init__(self, examples: Sequence[Example], recipe: Recipe, model: Model, training: Training) -> None:
        self._examples = examples
        self._recipe = recipe
        self._model = model
        self._training = training
        lengths = [len(example.tokens) - 1 for example in examples]
        self._rows = plan(lengths, training.max_length) if training.packing else None
        self.course = Course(training, len(self._rows or examples))
        self._neftune = (
            Neftune(model, training.neftune_noise_alpha, training.seed)
            if training.neftune_noise_alpha
            else None
        )

    def example(self, index: int) -> Example:
        """An example as it is in the data."""
        return self._examples[index]

    def examples(self, items: Sequence[int]) -> list[int]:
        """Indices of the examples of items."""
        if self._rows is None:
            return list(items)
        return [index for item in items for index in self._rows[item]]

    def size(self, micros: Sequence[Micro]) -> tuple[int, int, int]:
        """Label tokens, tokens read and examples of micro-batches."""
        found = [self._examples[i] for micro in micros for i in self.examples(micro.items)]
        return sum(item.weight for item in found), sum(len(item.tokens) - 1 for item in found), len(found)

    def batch(self, micro: Micro) -> Batch:
        """One micro-batch on the model's device."""
        epoch = micro.index // self.course.micro_per_epoch
        items = [self._item(item, epoch) for item in micro.items]
        return self._recipe.collate(items).to(self._model.device)

    def seed(self, micro: int) -> None:
        """Seed what the forward pass of a micro-batch draws."""
        seed_torch(self._training.seed, Domain.FORWARD, micro)
        if self._neftune is not None:
            self._neftune.begin(micro)

    def _item(self, item: int, epoch: int) -> Item:
        if self._rows is None:
            return self._example(item, epoch)
        return join([self._example(index, epoch) for index in self._rows[item]])

    def _example(self, index: int, epoch: int) -> Item:
        example, training = self._examples[index], self._training
        if not training.word_dropout:
            return example
        vocabulary = self._model.causal.config.get_text_config().vocab_size
        draw = epoch * len(self._examples) + index
        return drop_words(example, training.word_dropout, vocabulary, training.seed, draw)
