"""An export job: a checkpoint or a version made into another form, as a new artifact of kind `model`."""

from __future__ import annotations

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from tunesmith_trainer import adapters, artifact, environment
from tunesmith_trainer.evaluation.stage import Stage, steady
from tunesmith_trainer.export import save_adapter
from tunesmith_trainer.failure import invalid_input
from tunesmith_trainer.fields import Fields
from tunesmith_trainer.model import check_folder
from tunesmith_trainer.report import Reporter, span
from tunesmith_trainer.run import Run, Source
from tunesmith_trainer.writer import STATE

# What stays true of a model whatever its form.
_KEPT = (
    "dataset_digest",
    "epoch",
    "eval_loss",
    "best_eval_loss",
    "final_loss",
    "first_loss",
    "method",
    "step",
)


class Format(StrEnum):
    """Forms of a model; unset: as it was trained."""

    AS_TRAINED = "MODEL_FORMAT_UNSPECIFIED"
    ADAPTER = "MODEL_FORMAT_ADAPTER"
    MERGED = "MODEL_FORMAT_MERGED"


class Weights(StrEnum):
    """Number formats of weights."""

    FLOAT32 = "WEIGHT_FORMAT_FLOAT32"
    BFLOAT16 = "WEIGHT_FORMAT_BFLOAT16"


def export(run: Run, events: Reporter) -> None:
    """Write `output/`. Equal inputs give equal bytes."""
    spec = Fields(run.raw_spec, "run.json.spec").part("export")
    target = run.targets[0]
    source = target.source
    if source is None:
        raise spec.error("target", target.name, "name a version or a checkpoint; a base model is as it is")
    environment.pin(environment.threads_of(0, 1))
    with steady((run.base_model, "base model"), (source, target.name)):
        check_folder(run.base_model.path)
        full = adapters.is_full(source.path)
        wanted = _format(spec, full, target.name)
        weights = spec.choice("weights", Weights)
        properties = _properties(run, source, target.name, full, wanted, weights)

        def fill(folder: Path) -> None:
            if wanted is Format.ADAPTER:
                _adapter(run, source, folder)
            else:
                _merged(run, weights, folder)

        with span(events, "export", format=wanted):
            artifact.write(run.folder / "output", "model", properties, fill)


def _format(spec: Fields, full: bool, name: str) -> Format:
    wanted = spec.choice("format", Format)
    if wanted is Format.AS_TRAINED:
        return Format.MERGED if full else Format.ADAPTER
    if wanted is Format.ADAPTER and full:
        raise invalid_input(
            "EXPORT_IMPOSSIBLE",
            f"{name} has no adapter: every weight was trained",
            "use MODEL_FORMAT_MERGED",
        )
    return wanted


def _properties(
    run: Run, source: Source, name: str, full: bool, wanted: Format, weights: Weights
) -> dict[str, str]:
    before = json.loads((source.path / artifact.MANIFEST).read_bytes())["properties"]
    merged = wanted is Format.MERGED
    properties = {key: str(before[key]) for key in _KEPT if key in before}
    properties |= {
        "adapter": "full" if merged else "lora",
        "base_model": run.spec.base_model,
        "base_model_digest": run.base_model.digest,
        "format": "merged" if merged else "adapter",
        "source": name,
        "source_digest": source.digest,
        "spec_digest": run.spec_digest,
    }
    if merged:
        properties["weights"] = weights.removeprefix("WEIGHT_FORMAT_").lower()
        properties["merged_from"] = "full" if full else "lora"
    return properties


def _adapter(run: Run, source: Source, folder: Path) -> None:
    """A version's files are taken as they are; a checkpoint's tensors are saved as training saves them."""
    if not (source.path / STATE).exists():
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(source.path / name, folder / name)
        return
    swap = Stage(run, torch.device("cpu"), torch.float32).put_on(run.targets[0])
    assert swap.peft is not None
    save_adapter(swap.peft, run.spec.base_model, folder, source.digest)


def _merged(run: Run, weights: Weights, folder: Path) -> None:
    """The sum of base and adapter is made in 32 bits, whatever it is rounded to."""
    swap = Stage(run, torch.device("cpu"), torch.float32).put_on(run.targets[0])
    module: Any = swap.causal if swap.peft is None else _unloaded(swap.peft)
    module.to(torch.bfloat16 if weights is Weights.BFLOAT16 else torch.float32)
    module.save_pretrained(folder)
    swap.tokenizer.save_pretrained(folder)


def _unloaded(peft: PeftModel) -> Any:
    tuner: Any = peft.base_model
    return tuner.merge_and_unload(safe_merge=True)
