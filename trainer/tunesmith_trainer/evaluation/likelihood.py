"""How likely texts are: of references, under the masks of training, and of choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from tunesmith_trainer.adapters import Swap
from tunesmith_trainer.chat import ChatFormat
from tunesmith_trainer.data import Example, Row
from tunesmith_trainer.evaluation.questions import Question
from tunesmith_trainer.model import Model, Scorer
from tunesmith_trainer.recipe.sft import RECIPE, tokenize
from tunesmith_trainer.run import Precision

# Labels of one forward pass: their logits are the largest tensor by far, 200 kB a label with 50,000 tokens.
_MOST_LABELS = 1024


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Negative log likelihood of a text, in nats, and its tokens."""

    loss: float
    num_tokens: int


class Judge:
    """Likelihoods under the model that a swap has on."""

    def __init__(self, swap: Swap, chat: ChatFormat, max_length: int) -> None:
        self._swap, self._chat, self._max_length = swap, chat, max_length
        model = Model(swap.causal, swap.causal, swap.tokenizer, swap.device, Precision.FLOAT32)
        self._scorer = Scorer(model)

    def close(self) -> None:
        """Leaves the model as it was."""
        self._scorer.remove()

    def references(self, rows: Sequence[Row]) -> list[Likelihood | None]:
        """Of what training would have learnt of each row; None where that is nothing."""
        examples = [tokenize(row, self._chat, self._swap.tokenizer, self._max_length) for row in rows]
        found = iter(self._likelihoods([example for example in examples if example is not None]))
        return [None if example is None else next(found) for example in examples]

    def choices(self, question: Question, choices: Sequence[str]) -> list[Likelihood]:
        """Of each choice as the answer to a question."""
        before = self._chat.ask(question.row.line, question.prompt)
        head = self._tokens(before)
        return self._likelihoods([self._choice(head, self._tokens(before + choice)) for choice in choices])

    def _tokens(self, text: str) -> list[int]:
        return list(self._swap.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _choice(self, head: list[int], tokens: list[int]) -> Example:
        """A choice counts from the first token that the prompt alone does not have."""
        pairs = zip(head, tokens, strict=False)
        start = next(
            (at for at, (left, right) in enumerate(pairs) if left != right), min(len(head), len(tokens))
        )
        start = min(max(start, 1), len(tokens) - 1)
        cut = max(0, min(len(tokens) - self._max_length, start - 1))
        at = np.arange(start - 1 - cut, len(tokens) - 1 - cut, dtype=np.int64)
        return Example(np.array(tokens[cut:], dtype=np.int64), at)

    def _likelihoods(self, examples: Sequence[Example]) -> list[Likelihood]:
        return [item for part in _parts(examples) for item in self._forward(part)]

    def _forward(self, examples: Sequence[Example]) -> Iterator[Likelihood]:
        batch = RECIPE.collate(examples).to(self._swap.device)
        with torch.inference_mode():
            logits = self._scorer.logits(batch.input_ids, batch.positions)
            losses = functional.cross_entropy(logits.float(), batch.targets, reduction="none")
        at = 0
        values = losses.double().cpu()
        for example in examples:
            yield Likelihood(float(values[at : at + example.weight].sum()), example.weight)
            at += example.weight


def _parts(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Runs of examples whose labels fit one forward pass; a longer one has its own."""
    part: list[Example] = []
    for example in examples:
        if part and sum(item.weight for item in part) + example.weight > _MOST_LABELS:
            yield part
            part = []
        part.append(example)
    if part:
        yield part
