"""Answers to the sample prompts, to show people what training changed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig

from tunesmith_trainer.chat import ChatFormat
from tunesmith_trainer.model import Model

MAX_NEW_TOKENS = 48


def answer(model: Model, prompt: str) -> str:
    """The model's greedy answer, at most 48 tokens."""
    tokenizer = model.tokenizer
    causal: Any = model.causal  # its type does not say that it generates
    text = ChatFormat(tokenizer).prompt(prompt)
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
    own = model.causal.generation_config
    ends = own.eos_token_id if own is not None and own.eos_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=pad if pad is not None else 0,
    )
    model.module.eval()
    try:
        with torch.no_grad(), model.autocast():
            output = causal.generate(**inputs, generation_config=config)
    finally:
        model.module.train()
    new = output[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()
