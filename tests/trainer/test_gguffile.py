"""GGUF files: the same answers to the last bit when read back by transformers, or a refusal that says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Poison = Callable[[dict[str, Any]], None]


def test_a_file_read_back_answers_as_the_folder_does(base: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunesmith import gguf
    from tunesmith_trainer import gguffile

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    ids = torch.tensor([tokenizer("<|im_start|>user\nhow many trains? Ünï 日本<|im_end|>\n")["input_ids"]])
    sizes = {}
    for weights, off in (("float32", 0.0), ("float16", 1e-3), ("bfloat16", 1e-2), ("q8_0", 5e-2)):
        file = tmp_path / f"tiny-{weights}.gguf"
        gguffile.write(base, file, weights)
        sizes[weights] = file.stat().st_size
        read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
        with torch.no_grad():
            difference = (read(ids).logits - model(ids).logits).abs().max()
        assert float(difference) <= off, weights
        told = gguf.read(file)
        assert (told.architecture, told.context_length) == ("llama", model.config.max_position_embeddings)
    assert sizes["q8_0"] < sizes["bfloat16"] == sizes["float16"] < sizes["float32"]
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny-float32.gguf")
    text = "<|im_start|>user\nwhat's the weather like in Ünïcode 日本?<|im_end|>\n  \n\n x"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == tokenizer.chat_template
    assert (again.eos_token, again.bos_token) == (tokenizer.eos_token, tokenizer.bos_token)
    gguffile.write(base, tmp_path / "again.gguf", "float32")
    first, second = (tmp_path / f"{name}.gguf" for name in ("tiny-float32", "again"))
    assert first.read_bytes() == second.read_bytes(), "equal folders give equal bytes"


def _set(name: str, value: Any) -> Poison:
    return lambda said: said.__setitem__(name, value)


@pytest.mark.parametrize(
    ("file", "poison", "said"),
    [
        ("config.json", _set("model_type", "qwen3"), "model_type is 'qwen3'"),
        ("config.json", _set("attention_bias", True), "attention_bias is True"),
        ("config.json", _set("rope_scaling", {"rope_type": "yarn", "factor": 2}), "rope_type is 'yarn'"),
        ("config.json", _set("vocab_size", 100), "more tokens than the model"),
        ("tokenizer.json", _set("pre_tokenizer", {"type": "Whitespace"}), "no known name"),
        ("tokenizer.json", _set("normalizer", {"type": "NFC"}), "changes texts"),
        ("tokenizer.json", _set("model", {"type": "Unigram"}), "no byte-level BPE"),
    ],
)
def test_what_cannot_be_said_is_refused_and_leaves_no_file(
    base: Path, tmp_path: Path, file: str, poison: Poison, said: str
) -> None:
    from tunesmith_trainer import gguffile
    from tunesmith_trainer.failure import TrainerError

    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    content = json.loads((folder / file).read_text())
    poison(content)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(TrainerError, match=said) as refused:
        gguffile.write(folder, tmp_path / "out.gguf", "bfloat16")
    assert refused.value.failure.reason == "EXPORT_IMPOSSIBLE"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
