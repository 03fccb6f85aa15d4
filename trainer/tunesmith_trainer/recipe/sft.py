"""Supervised fine-tuning: next-token cross-entropy on what the assistant wrote, or on all of a plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from tunesmith_trainer.chat import ChatFormat, Rendered
from tunesmith_trainer.data import Batch, Example, Item, Row
from tunesmith_trainer.failure import invalid_input
from tunesmith_trainer.packing import position_ids
from tunesmith_trainer.report import log

if TYPE_CHECKING:
    from tunesmith_trainer.model import Scorer
    from tunesmith_trainer.report import Reporter

# Rows tokenised in one call: the tokenizer spreads them over the cores.
_CHUNK = 1024


class Sft:
    """The recipe of METHOD_SFT."""

    def prepare(
        self, rows: Iterable[Row], tokenizer: PreTrainedTokenizerFast, max_length: int, reporter: Reporter
    ) -> list[Example]:
        chat = ChatFormat(tokenizer)
        examples: list[Example] = []
        num_rows = num_cut = 0
        rows = iter(rows)
        while chunk := list(islice(rows, _CHUNK)):
            num_rows += len(chunk)
            for tokens, labels in _tokenize(chunk, chat, tokenizer):
                num_cut += len(tokens) > max_length
                if (example := _example(tokens[:max_length], labels[:max_length])) is not None:
                    examples.append(example)
        _tell(reporter, num_rows, len(examples), num_cut, max_length)
        return examples

    def collate(self, items: Sequence[Item]) -> Batch:
        width = max(len(item.inputs) for item in items)
        ids = np.zeros((len(items), width), dtype=np.int64)
        for row, item in enumerate(items):
            ids[row, : len(item.inputs)] = item.inputs
        positions = np.concatenate([row * width + item.positions for row, item in enumerate(items)])
        targets = np.concatenate([item.targets for item in items])
        return Batch(
            torch.from_numpy(ids),
            torch.from_numpy(positions),
            torch.from_numpy(targets),
            len(targets),
            position_ids(items, width),
        )

    def loss(self, scorer: Scorer, batch: Batch) -> tuple[torch.Tensor, int]:
        logits = scorer.logits(batch.input_ids, batch.positions, batch.position_ids)
        return functional.cross_entropy(logits.float(), batch.targets, reduction="sum"), batch.weight


RECIPE = Sft()


def tokenize(
    row: Row, chat: ChatFormat, tokenizer: PreTrainedTokenizerFast, max_length: int
) -> Example | None:
    """The example that training makes of a row; None when it has nothing to learn."""
    tokens, labels = next(_tokenize([row], chat, tokenizer))
    return _example(tokens[:max_length], labels[:max_length])


def _tokenize(
    rows: list[Row], chat: ChatFormat, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[list[int], list[bool]]]:
    """Tokens of each row, and for each token whether it counts."""
    eos = tokenizer.eos_token or ""
    rendered = [chat.render(row) if row.messages else _plain(row.text + eos) for row in rows]
    # A template writes the special tokens itself; a plain text gets the tokenizer's own (for example BOS).
    for special in (False, True):
        wanted = [item for item, row in zip(rendered, rows, strict=True) if bool(row.messages) != special]
        if not wanted:
            continue
        found = tokenizer(
            [item.text for item in wanted],
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for item, ids, offsets in zip(wanted, found["input_ids"], found["offset_mapping"], strict=True):
            yield ids, _labels(item, offsets)


def _plain(text: str) -> Rendered:
    return Rendered(text, ((0, len(text)),))


def _labels(item: Rendered, offsets: list[tuple[int, int]]) -> list[bool]:
    """A token counts when it begins inside a span; one that merges over the beginning was partly given."""
    labels = [False] * len(offsets)
    spans = iter(item.spans)
    start, end = next(spans, (0, 0))
    for index, (begin, stop) in enumerate(offsets):
        while begin >= end > 0:
            start, end = next(spans, (0, 0))
        labels[index] = start <= begin < end and begin < stop
    return labels


def _example(tokens: list[int], labels: list[bool]) -> Example | None:
    """The first token has nothing before it, so its label never counts; the rest after the last is cut."""
    wanted = [index for index, label in enumerate(labels) if label and index]
    if not wanted:
        return None
    last = wanted[-1] + 1
    return Example(np.array(tokens[:last], dtype=np.int64), np.array(wanted, dtype=np.int64) - 1)


def _tell(reporter: Reporter, num_rows: int, num_kept: int, num_cut: int, max_length: int) -> None:
    if num_cut:
        log(
            reporter,
            "warning",
            f"{num_cut} of {num_rows} examples are longer than {max_length} tokens and were cut",
        )
    if num_rows == 0:
        raise invalid_input("DATASET_EMPTY", "data.jsonl has no rows", "give at least one row")
    if num_kept == 0:
        raise invalid_input(
            "NO_LABELS",
            f"none of the {num_rows} examples has a token to learn within {max_length} tokens",
            "give assistant turns that are not empty, or raise training.max_length",
        )
    if num_kept < num_rows:
        log(
            reporter,
            "warning",
            f"{num_rows - num_kept} of {num_rows} examples have no token to learn and were left out",
        )
