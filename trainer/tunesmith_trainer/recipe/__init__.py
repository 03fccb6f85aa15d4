"""Training methods: one recipe object each. A new method is a module here and an entry point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

import torch
from transformers import PreTrainedTokenizerFast

from tunesmith_trainer.data import Batch, Example, Item, Row
from tunesmith_trainer.failure import invalid_input
from tunesmith_trainer.recipe.sft import RECIPE as SFT

if TYPE_CHECKING:
    from tunesmith_trainer.model import Scorer
    from tunesmith_trainer.report import Reporter

_GROUP = "tunesmith.recipes"


class Recipe(Protocol):
    """What a training method decides: how rows become examples, and what is minimised."""

    def prepare(
        self, rows: Iterable[Row], tokenizer: PreTrainedTokenizerFast, max_length: int, reporter: Reporter
    ) -> list[Example]:
        """Tokens and labels of the rows, in an order of their own; rows without labels are left out."""
        ...

    def collate(self, items: Sequence[Item]) -> Batch:
        """A micro-batch, a row an item."""
        ...

    def loss(self, scorer: Scorer, batch: Batch) -> tuple[torch.Tensor, int]:
        """Sum of the loss and its weight; never a mean, so that accumulation is exact."""
        ...


_BUILT_IN: dict[str, Recipe] = {"METHOD_SFT": SFT}


def recipe_of(method: str) -> Recipe:
    """The recipe of a method: built in, or from a package with an entry point of that name."""
    if method in _BUILT_IN:
        return _BUILT_IN[method]
    found = {point.name: point for point in entry_points(group=_GROUP)}
    if method not in found:
        raise invalid_input(
            "METHOD_UNKNOWN",
            f"method is {method!r}",
            f"use one of {', '.join(sorted({*_BUILT_IN, *found}))}, or install its package on the node",
        )
    recipe: Recipe = found[method].load()
    return recipe
