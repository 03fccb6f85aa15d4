"""Exports in their run folder: what other tools load is what answered here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.trainer import support
from tests.trainer.test_evaluation import target

MakeRun = Callable[..., Path]
Train = Callable[..., int]


def export(**fields: str) -> dict[str, Any]:
    return {**support.spec(), "export": fields}


@pytest.fixture(scope="module")
def runs(
    zygote: support.Zygote, base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A finished run of LoRA and one of full fine-tuning."""
    made = {}
    for name, adapter in (("lora", None), ("full", {"full": {}})):
        job = support.spec(adapter, max_steps="6", learning_rate=0.01, keep_checkpoints=4)
        made[name] = support.make_run(tmp_path_factory.mktemp(name) / "run", base, dataset, job)
        assert zygote.start(made[name]).end() == 0, support.log_of(made[name])
    return made


def properties(run: Path) -> dict[str, str]:
    return dict(json.loads((run / "output" / "manifest.json").read_bytes())["properties"])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.tensor([[1, 2, 3, 4, 5]])).logits
    return found


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_last_checkpoint_exports_to_what_training_left(
    make_run: MakeRun, train: Train, runs: dict[str, Path], kind: str
) -> None:
    checkpoint = runs[kind] / "checkpoints" / "step-00000006"
    run = make_run(export(), dataset=None, targets=[target("checkpoint", checkpoint)])
    assert train(run) == 0, support.log_of(run)
    (weights,) = (run / "output").glob("*.safetensors")
    assert weights.read_bytes() == (runs[kind] / "output" / weights.name).read_bytes()
    if kind == "lora":
        name = "adapter_config.json"
        assert (run / "output" / name).read_bytes() == (runs[kind] / "output" / name).read_bytes()
    found = properties(run)
    assert found["adapter"] == kind
    assert found["source"] == "checkpoint"
    assert found["source_digest"] == support.digest_of(checkpoint)
    assert found["step"] == "6"
    assert support.status(run)["phase"] == "EXPORT"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's and transformers' own
def test_a_merged_model_answers_as_base_and_adapter_do(
    make_run: MakeRun, train: Train, runs: dict[str, Path], base: Path
) -> None:
    adapter = runs["lora"] / "output"
    run = make_run(export(format="MODEL_FORMAT_MERGED"), dataset=None, targets=[target("version", adapter)])
    assert train(run) == 0, support.log_of(run)
    merged = AutoModelForCausalLM.from_pretrained(run / "output", dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = logits(plain)
    tuned = logits(PeftModel.from_pretrained(plain, str(adapter)))
    assert torch.allclose(logits(merged), tuned, atol=1e-4)
    assert not torch.allclose(before, tuned, atol=1e-2)
    assert properties(run)["format"] == "merged"
    assert (run / "output" / "tokenizer.json").exists()


def test_weights_are_rounded_when_that_is_asked(
    make_run: MakeRun, train: Train, runs: dict[str, Path]
) -> None:
    run = make_run(
        export(format="MODEL_FORMAT_MERGED", weights="WEIGHT_FORMAT_BFLOAT16"),
        dataset=None,
        targets=[target("version", runs["lora"] / "output")],
    )
    assert train(run) == 0, support.log_of(run)
    tensors = load_file(run / "output" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_what_cannot_be_exported_is_refused(
    make_run: MakeRun, train: Train, runs: dict[str, Path], base: Path
) -> None:
    full = target("version", runs["full"] / "output")
    for name, spec, wanted, reason in (
        ("full", export(format="MODEL_FORMAT_ADAPTER"), full, "EXPORT_IMPOSSIBLE"),
        ("base", export(), target("base"), "FIELD_INVALID"),
        ("damaged", export(), {**full, "digest": "0" * 64}, "INPUT_DAMAGED"),
    ):
        run = make_run(spec, name, dataset=None, targets=[wanted])
        assert train(run) != 0
        assert support.finished(run)["reason"] == reason
