"""The trained artifact: a PEFT folder of LoRA, a Hugging Face folder of full fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel

from tunesmith_trainer import artifact
from tunesmith_trainer.artifact import Artifact
from tunesmith_trainer.session import Session
from tunesmith_trainer.state import Progress


def export(session: Session, progress: Progress) -> Artifact:
    """Write `output/`. Equal runs give equal bytes, so the same digest on every node."""
    spec = session.run.spec
    properties = {
        **session.identity.properties,
        "adapter": "full" if spec.lora is None else "lora",
        "base_model": spec.base_model,
        "epoch": f"{session.course.epoch_at(progress.step):.6g}",
        "final_loss": repr(progress.loss),
        "first_loss": repr(progress.first_loss),
        "method": spec.method,
        "step": str(progress.step),
        "steps": str(progress.step),
    }
    if progress.eval_loss is not None:
        properties["eval_loss"] = repr(progress.eval_loss)
        properties["best_eval_loss"] = repr(progress.best_eval_loss)

    def fill(folder: Path) -> None:
        module = session.model.module
        if isinstance(module, PeftModel):
            save_adapter(module, spec.base_model, folder)
        else:
            module.save_pretrained(folder)
            session.model.tokenizer.save_pretrained(folder)

    return artifact.write(session.run.folder / "output", "model", properties, fill)


def save_adapter(module: PeftModel, base_model: str, folder: Path, name: str = "default") -> None:
    """Write one of a model's adapters as a PEFT folder; equal adapters give equal bytes."""
    # "auto" would look the base model up on the hub to see whether its embedding grew; ours never does.
    module.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=[name])
    (folder / "README.md").unlink(missing_ok=True)
    if (folder / name).is_dir():  # PEFT gives every adapter but the default one a folder of its own
        for path in (folder / name).iterdir():
            path.rename(folder / path.name)
        (folder / name).rmdir()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_bytes())
    # A path of this node means nothing elsewhere, and PEFT writes sets in the order of this process's hashes.
    config["base_model_name_or_path"] = base_model
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[key] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
