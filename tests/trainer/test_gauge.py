"""What a run says of its computing and memory: counted by torch itself, and told by a real run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer import support
from tunesmith_trainer import flops, model
from tunesmith_trainer.data import Example
from tunesmith_trainer.flops import peak_flops, work_of
from tunesmith_trainer.gauge import Gauge
from tunesmith_trainer.model import Scorer
from tunesmith_trainer.recipe.sft import RECIPE
from tunesmith_trainer.run import Lora, Precision, Spec

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
_TOKENS, _ROWS = 48, 4


def _counted(loaded: model.Model, num_labels: int) -> float:
    """What torch counts in one forward and backward pass over four rows of equal length."""
    dice = torch.Generator().manual_seed(1)
    rows = torch.randint(3, 200, (_ROWS, _TOKENS + 1), generator=dice).numpy()
    wanted = torch.arange(_TOKENS - num_labels, _TOKENS).numpy()
    batch = RECIPE.collate([Example(row, wanted) for row in rows]).to(loaded.device)
    # The attention in plain matrix products, which torch counts on the processor too.
    loaded.causal.set_attn_implementation("eager")
    loaded.module.train()
    counter = FlopCounterMode(display=False)
    with counter:
        RECIPE.loss(Scorer(loaded), batch)[0].backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize(("lora", "num_labels"), [(None, 4), (Lora(4, 8.0, 0.0, ()), _TOKENS)])
def test_the_work_of_a_step_is_what_torch_counts(base: Path, lora: Lora | None, num_labels: int) -> None:
    training: Any = type("", (), {"seed": 1, "precision": Precision.FLOAT32})()
    loaded = model.load(base, Spec("tiny", "METHOD_SFT", lora, training, ()), torch.device("cpu"))
    work = work_of(loaded).flops(_ROWS * _TOKENS, _ROWS * num_labels, _ROWS)
    counted = _counted(loaded, num_labels)
    # With adapters nothing is passed back below the first layer: of a tiny model's few that is some.
    assert counted == pytest.approx(work, rel=0.01 if lora is None else 0.15)
    if lora is not None:
        full = model.load(base, Spec("tiny", "METHOD_SFT", None, training, ()), torch.device("cpu"))
        assert work < 0.85 * work_of(full).flops(_ROWS * _TOKENS, _ROWS * num_labels, _ROWS)


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 66.9),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("Tesla T4", None, 8.1),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA RTX A1000", None, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
        ("something new", None, None),
    ],
)
def test_peaks_are_known_by_name_and_none_is_invented(
    name: str, bfloat16: float | None, float32: float | None
) -> None:
    found = (peak_flops(name, Precision.BFLOAT16), peak_flops(name, Precision.FLOAT32))
    assert found == tuple(None if peak is None else peak * 1e12 for peak in (bfloat16, float32))
    assert peak_flops(name, Precision.FLOAT32, 40.0) == 40e12


def test_utilisation_is_what_was_needed_of_what_could_be_had() -> None:
    gauge = Gauge(flops.Work(by_token=6e9, by_label=0.0, by_pair=0.0), peak=2e12)
    gauge.begin()
    gauge.step(0.1, (10, 1000, 4))
    assert (gauge.mfu, gauge.tflops) == (None, None), "nothing was read yet"
    pace = gauge.read()
    assert gauge.tflops == pytest.approx(pace * 6e9 / 1e12)
    assert gauge.mfu == pytest.approx(pace * 6e9 / 2e12)


def test_a_run_says_what_it_computes_with_and_what_it_takes(
    make_run: Callable[..., Path], train: Callable[..., int]
) -> None:
    run = make_run(support.spec(max_steps="4"), gpu_peak_tflops=100.0)
    assert train(run) == 0
    status = json.loads((run / "status.json").read_bytes())
    assert 0 < status["tflops"] < 100
    assert 1e7 < status["resident_bytes"] < 1e12
    # A processor has no peak, whatever was said of GPUs.
    assert [status[name] for name in ("mfu", "gpu_memory_peak_bytes", "gpu_memory_total_bytes")] == [None] * 3
    told = json.loads((run / "environment.json").read_bytes())
    assert (told["torch"], told["device"], told["world_size"]) == (torch.__version__, "cpu", "1")
    assert told["threads"] == "1"
    assert told["python"].startswith("3.")
    newest = max((run / "checkpoints").iterdir())
    fingerprint = json.loads(json.loads((newest / "manifest.json").read_bytes())["properties"]["fingerprint"])
    assert fingerprint.items() <= told.items()
