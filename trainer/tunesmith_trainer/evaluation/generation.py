"""Answers of a model to many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from tunesmith_trainer.evaluation.plan import Generation
from tunesmith_trainer.seeds import Domain, seed_torch


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, and how many tokens that took."""

    text: str
    num_tokens: int


class Speaker(Protocol):
    """A model that answers, with its tokenizer."""

    @property
    def causal(self) -> PreTrainedModel:
        """The model."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Its tokenizer."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...


def generate(swap: Speaker, prompts: Sequence[list[int]], wanted: Generation, batch: int) -> list[Answer]:
    """One answer for each prompt, given as tokens. What is sampled depends on `wanted.seed` and `batch`."""
    tokenizer = swap.tokenizer
    config = _config(swap, wanted)
    pad = config.pad_token_id
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):  # on the left: each answer continues its own prompt
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    more: dict[str, Any] = {"stop_strings": list(wanted.stop), "tokenizer": tokenizer} if wanted.stop else {}
    causal: Any = swap.causal  # its type does not say that it generates
    seed_torch(wanted.seed, Domain.GENERATE, batch)
    with torch.no_grad():  # not inference_mode: what the model caches may be used in training
        output = causal.generate(
            input_ids=ids.to(swap.device),
            attention_mask=mask.to(swap.device),
            generation_config=config,
            **more,
        )
    ends = {*_ends(swap)}
    return [_answer(tokenizer, row, ends, wanted.stop) for row in output[:, width:].tolist()]


def _answer(tokenizer: Any, tokens: list[int], ends: set[int], stop: Sequence[str]) -> Answer:
    """What stands before the first end of text; whatever follows only fills the batch."""
    length = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    text = str(tokenizer.decode(tokens[:length], skip_special_tokens=True)).strip()
    for word in stop:
        text = text.partition(word)[0]
    return Answer(text.rstrip(), min(length + 1, len(tokens)))


def _ends(swap: Speaker) -> list[int]:
    own = swap.causal.generation_config
    ends = own.eos_token_id if own is not None else None
    if ends is None:
        ends = swap.tokenizer.eos_token_id
    return list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [int(ends)]


def _config(swap: Speaker, wanted: Generation) -> GenerationConfig:
    ends = _ends(swap)
    pad = swap.tokenizer.pad_token_id
    sampled: dict[str, Any] = {"do_sample": False}
    if wanted.temperature > 0:
        sampled = {"do_sample": True, "temperature": wanted.temperature, "top_p": wanted.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=wanted.max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=pad if pad is not None else ends[0] if ends else 0,
        **sampled,
    )
