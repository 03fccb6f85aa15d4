"""The artifact works with the plain libraries, without Tunesmith."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainer import support

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
PROBE = torch.arange(3, 40).unsqueeze(0)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(PROBE).logits)


def test_lora_output_is_a_plain_peft_folder_with_the_trained_weights(
    make_run: Callable[..., Path], train: Callable[..., int], base: Path
) -> None:
    run = make_run(support.spec())
    assert train(run) == 0, support.log_of(run)
    assert sorted(path.name for path in (run / "output").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    loaded = PeftModel.from_pretrained(load(base), str(run / "output")).eval()
    rebuilt = get_peft_model(load(base), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")).eval()
    trained = load_file(support.checkpoints(run)[-1] / "trainable.safetensors")
    assert rebuilt.load_state_dict(trained, strict=False).unexpected_keys == []
    assert torch.equal(logits(loaded), logits(rebuilt))
    assert not torch.allclose(logits(loaded), logits(load(base)), atol=1e-3)


def test_full_output_is_a_plain_hugging_face_folder(
    make_run: Callable[..., Path], train: Callable[..., int], base: Path
) -> None:
    run = make_run(support.spec({"full": {}}, learning_rate=0.001))
    assert train(run) == 0, support.log_of(run)
    loaded = load(run / "output")
    trained = load_file(support.checkpoints(run)[-1] / "trainable.safetensors")
    assert all(torch.equal(trained[name], item) for name, item in loaded.named_parameters())
    assert not torch.allclose(logits(loaded), logits(load(base)), atol=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(run / "output")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base).chat_template
