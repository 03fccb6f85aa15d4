"""Answers token by token. Several go on in turn on one model, each can be ended between two tokens."""

from __future__ import annotations

import inspect
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunesmith_trainer.failure import invalid_input

_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class Parameters:
    """How tokens are chosen; `temperature` 0: always the likeliest. `seed` None: another each time."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()


class Chooser:
    """Picks the next token of one answer."""

    def __init__(self, parameters: Parameters, device: torch.device) -> None:
        chosen = LogitsProcessorList()
        if parameters.repetition_penalty != 1:
            chosen.append(RepetitionPenaltyLogitsProcessor(parameters.repetition_penalty))
        self._sample = parameters.temperature > 0
        if self._sample:
            chosen.append(TemperatureLogitsWarper(parameters.temperature))
            if parameters.top_k:
                chosen.append(TopKLogitsWarper(parameters.top_k))
            if parameters.top_p < 1:
                chosen.append(TopPLogitsWarper(parameters.top_p))
        self._processors = chosen
        self._dice = torch.Generator(device)
        self._dice.manual_seed(secrets.randbits(53) if parameters.seed is None else parameters.seed)

    def choose(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """ids (1, tokens so far), logits (1, vocabulary): the next token (1, 1)."""
        if self._processors:
            # In 32 bits whatever the model computes in, as `generate` of transformers does.
            logits = self._processors(ids, logits.float())  # type: ignore[arg-type]
        if not self._sample:
            return logits.argmax(-1, keepdim=True)
        return torch.multinomial(logits.softmax(-1), 1, generator=self._dice)


class Text:
    """Tokens as text that only grows: what may still change, or begin a stop text, is held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, [text for text in stop if text]
        self._ids: list[int] = []
        self._from, self._read = 0, 0
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Takes a token; returns the text that is now certain."""
        self._ids.append(token)
        # A window of tokens, for a token's text depends on those before it, but not on all.
        before = self._decode(self._from, self._read)
        now = self._decode(self._from, len(self._ids))
        if len(now) <= len(before) or now.endswith(_REPLACEMENT):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return self._release(now[len(before) :])

    def rest(self) -> str:
        """What was held back, once no more tokens come."""
        if self.stopped:
            return ""
        tail = self._decode(self._from, len(self._ids))[len(self._decode(self._from, self._read)) :]
        self._read = len(self._ids)
        released = self._release(tail)
        held, self._held = self._held, ""
        return released + ("" if self.stopped else held)

    def _decode(self, start: int, end: int) -> str:
        text = self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _release(self, new: str) -> str:
        text = self._held + new
        for stop in self._stop:
            at = text.find(stop)
            if at >= 0:
                self.stopped = True
                text = text[:at]
        if self.stopped:
            self._held = ""
            return text
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class Answer:
    """One answer under way: a step is a token.

    Attributes:
        finish: empty while it goes on; then `stop` or `length`.
        prompt_tokens, completion_tokens: how many there are; the end of the answer counts as a token.
    """

    def __init__(
        self,
        causal: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        prompt: str,
        parameters: Parameters,
        device: torch.device,
    ) -> None:
        """Tokenizes `prompt`, whose special tokens are written out.

        Raises TrainerError, class INVALID_INPUT: the prompt leaves no room for an answer.
        """
        self._causal: Any = causal
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        self._ids = torch.as_tensor(ids).to(device)
        self.prompt_tokens, self.completion_tokens = int(self._ids.shape[1]), 0
        limit = context_length(causal)
        _check_room(self.prompt_tokens, limit)
        self._most = min(parameters.max_new_tokens, limit - self.prompt_tokens if limit else 2**31)
        self._chooser = Chooser(parameters, device)
        self._text = Text(tokenizer, parameters.stop)
        self._ends = frozenset(ends_of(causal, tokenizer))
        self._cache = DynamicCache(config=causal.config)
        self._next = self._ids
        # The head is a fifth of a small model's work: only the last position needs it.
        few = "logits_to_keep" in inspect.signature(self._causal.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if few else {}
        self._began = time.perf_counter()
        self._first = 0.0
        self._last = 0.0
        self.finish = ""

    @torch.inference_mode()
    def step(self) -> str:
        """Makes one token; returns the text that is certain by it, perhaps none."""
        output = self._causal(
            input_ids=self._next,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
            **self._options,
        )
        self._next = self._chooser.choose(self._ids, output.logits[:, -1])
        token = int(self._next)
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self.completion_tokens += 1
        if token in self._ends:
            self.finish = "stop"
            return self._text.rest()
        self._ids = torch.cat((self._ids, self._next), 1)
        text = self._text.add(token)
        if self._text.stopped:
            self.finish = "stop"
        elif self.completion_tokens >= self._most:
            self.finish = "length"
            text += self._text.rest()
        return text

    @property
    def first_token_seconds(self) -> float:
        """Seconds from the beginning to the first token."""
        return self._first - self._began if self._first else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second after the first; 0 when there was only one."""
        spent = self._last - self._first
        return (self.completion_tokens - 1) / spent if spent > 0 and self.completion_tokens > 1 else 0.0


def context_length(causal: PreTrainedModel) -> int:
    """Tokens a model can see at once; 0 when it does not say."""
    config = causal.config.get_text_config(decoder=True)
    return int(getattr(config, "max_position_embeddings", 0) or 0)


def ends_of(causal: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens that end an answer: the model's own, else the tokenizer's end of text."""
    own = causal.generation_config
    ends: Any = own.eos_token_id if own is not None and own.eos_token_id is not None else None
    if ends is None:
        ends = tokenizer.eos_token_id
    found = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return [int(end) for end in found]


def _check_room(num_tokens: int, limit: int) -> None:
    if num_tokens == 0:
        raise invalid_input("CHAT_EMPTY", "the conversation renders to no text", "say something in it")
    if limit and num_tokens >= limit:
        raise invalid_input(
            "CONTEXT_TOO_LONG",
            f"the conversation has {num_tokens} tokens; the model sees {limit}, the answer included",
            "shorten the conversation, or begin a new one",
        )
