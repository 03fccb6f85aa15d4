"""A tiny random model for tests, 139,584 parameters: `python -m tunesmith_trainer.tiny --out FOLDER`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_TEXT = (
    "the quick brown fox jumps over the lazy dog",
    "user and assistant talk about the weather, the trains and the number of people in the city",
    "what is the capital of France? the capital of France is Paris.",
    "how are you today? i am fine, thank you, and you?",
    "one two three four five six seven eight nine ten",
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make(folder: Path, seed: int = 0) -> str:
    """Write the model to `folder`; the same seed gives the same bytes. Gives the artifact's digest."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    from tunesmith_trainer import artifact

    logging.disable_progress_bar()
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=list(_SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=_SPECIAL[0], eos_token=_SPECIAL[2], pad_token=_SPECIAL[0]
    )
    tokenizer.chat_template = _TEMPLATE
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)

    def fill(target: Path) -> None:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)

    folder.parent.mkdir(parents=True, exist_ok=True)
    return artifact.write(folder, "model", {"base_model": "tiny"}, fill).digest


def main() -> int:
    """Make the model where the command line says; gives the exit code."""
    parser = argparse.ArgumentParser(prog="tunesmith_trainer.tiny", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    options = parser.parse_args()
    sys.stdout.write(make(options.out, options.seed) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
