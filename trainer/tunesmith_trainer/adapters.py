"""Trained models in memory: a base model stays loaded, adapters and checkpoints are swapped on it."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tunesmith_trainer import artifact, model
from tunesmith_trainer.failure import TrainerError, invalid_input
from tunesmith_trainer.fields import Fields
from tunesmith_trainer.run import lora_of
from tunesmith_trainer.state import TRAINABLE
from tunesmith_trainer.writer import STATE

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_REMEDY = "fetch it again; if it stays so, the stored copy is damaged: `tunesmith verify` names the file"


class Swap:
    """A base model with adapters on it, of which one or none answers; the least used of `most` goes.

    Attributes:
        causal: what is called, whichever adapter is on.
    """

    def __init__(
        self, causal: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, device: torch.device, most: int = 4
    ) -> None:
        self.causal, self.tokenizer, self.device = causal, tokenizer, device
        self._most = max(1, most)
        self._peft: PeftModel | None = None
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._on = ""
        causal.eval()
        causal.requires_grad_(False)

    @property
    def peft(self) -> PeftModel | None:
        """The model with its adapters; None while there has been none."""
        return self._peft

    @property
    def loaded(self) -> list[str]:
        """Digests of the adapters in memory, the least used first."""
        return list(self._loaded)

    def use(self, digest: str, folder: Path | None = None) -> None:
        """Puts an adapter on; an empty digest takes it off. `folder` holds it: an artifact of kind `model` or
        `checkpoint`.

        Raises TrainerError, class INVALID_INPUT, when it is damaged or does not fit the base model.
        """
        if digest == self._on:
            if digest:
                self._loaded.move_to_end(digest)
            return
        if digest and digest not in self._loaded:
            if folder is None:
                raise ValueError("an adapter that is not loaded needs its folder")
            self._load(digest, folder)
        self._switch(digest)

    def _switch(self, digest: str) -> None:
        peft = self._peft
        if peft is None:
            return
        tuner: Any = peft.base_model
        if not digest:
            tuner.disable_adapter_layers()
        else:
            if not self._on:
                tuner.enable_adapter_layers()
            peft.set_adapter(digest, inference_mode=True)
            self._loaded.move_to_end(digest)
        self._on = digest

    def _load(self, digest: str, folder: Path) -> None:
        config, tensors = read(folder, digest)
        # Before the new one is there, for memory's sake; never the last, of which PEFT needs one.
        while len(self._loaded) >= max(2, self._most):
            oldest = next(each for each in self._loaded if each != self._on)
            self._drop(oldest)
        try:
            if self._peft is None:
                self._peft = PeftModel(self.causal, config, adapter_name=digest)
                self._on = digest
            else:
                self._peft.add_adapter(digest, config)
            told: Any = set_peft_model_state_dict(self._peft, tensors, adapter_name=digest)
        except (ValueError, RuntimeError, KeyError) as error:
            self._forget(digest)
            raise damaged(digest, f"it does not fit the base model: {error}") from error
        lacking = [name for name in told.missing_keys if f".{digest}." in name]
        if told.unexpected_keys or lacking:
            self._forget(digest)
            raise damaged(digest, f"its tensors are others: {[*told.unexpected_keys, *lacking][0]}")
        self._loaded[digest] = None
        self.causal.eval()
        self.causal.requires_grad_(False)

    def _drop(self, digest: str) -> None:
        assert self._peft is not None
        self._peft.delete_adapter(digest)
        del self._loaded[digest]

    def _forget(self, digest: str) -> None:
        """Takes back what a failed load left behind."""
        peft = self._peft
        if peft is None or digest not in peft.peft_config:
            self._switch(self._on)
            return
        if self._loaded:
            peft.delete_adapter(digest)
            before, self._on = self._on, digest
            self._switch(before)
            return
        tuner: Any = peft.base_model
        self.causal = tuner.unload()
        self._peft, self._on = None, ""


def load(folder: Path, device: torch.device, dtype: torch.dtype, most: int = 4) -> Swap:
    """Loads a base model, or a fully fine-tuned one, onto which adapters can be put."""
    causal, tokenizer = model.read(folder, device, dtype)
    return Swap(causal, tokenizer, device, most)


def load_full(folder: Path, checkpoint: Path, device: torch.device, dtype: torch.dtype) -> Swap:
    """Loads a base model with the weights that a checkpoint of a full fine-tuning has."""
    causal, tokenizer = model.read(folder, device, dtype)
    tensors = _tensors(checkpoint / f"{TRAINABLE}.safetensors", checkpoint.name)
    parameters = dict(causal.named_parameters())
    shapes = {name: tuple(item.shape) for name, item in parameters.items()}
    for name in sorted({*shapes, *tensors}):
        found = tuple(tensors[name].shape) if name in tensors else None
        if shapes.get(name) != found:
            raise damaged(checkpoint.name, f"{name} is {found}, of the base model {shapes.get(name)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return Swap(causal, tokenizer, device)


def is_full(folder: Path) -> bool:
    """Whether an artifact holds a whole model's weights, not an adapter's."""
    if (folder / STATE).exists():
        return lora_of(Fields(_json(folder / STATE, folder.name).get("spec") or {}, STATE)) is None
    return not (folder / _CONFIG).exists()


def read(folder: Path, digest: str) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """The LoRA of a model version or a checkpoint: its configuration, and its tensors by PEFT's names.

    Raises TrainerError, class INVALID_INPUT, naming the digest when it cannot be read.
    """
    if (folder / STATE).exists():
        lora = lora_of(Fields(_json(folder / STATE, digest).get("spec") or {}, STATE))
        if lora is None:
            raise damaged(digest, "it holds a whole model, not an adapter")
        tensors = _tensors(folder / f"{TRAINABLE}.safetensors", digest)
        config = model.lora_config(lora)
        tensors = {name.replace(".default.", "."): item for name, item in tensors.items()}
    else:
        config = _config(folder, digest)
        tensors = _tensors(folder / _WEIGHTS, digest)
    config.inference_mode = True
    return config, tensors


def verify(folder: Path, digest: str) -> None:
    """Hashes every file of an adapter or checkpoint again.

    Raises TrainerError, class INVALID_INPUT, naming the digest and the first file that is not as it was.
    """
    try:
        artifact.verify(folder, digest)
    except artifact.DamagedError as error:
        raise damaged(digest, str(error).replace(f"{folder}/", "")) from error


def damaged(digest: str, why: str) -> TrainerError:
    """The error of an adapter or checkpoint that cannot be used."""
    return invalid_input("ADAPTER_DAMAGED", f"{digest} cannot be used: {why}"[:1000], _REMEDY)


def _config(folder: Path, digest: str) -> LoraConfig:
    said = _json(folder / _CONFIG, digest)
    if said.get("peft_type") != "LORA":
        raise damaged(digest, f"it is an adapter of kind {said.get('peft_type')}, not LORA")
    if said.get("auto_mapping"):
        raise damaged(digest, "its configuration names a class to import")
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (TypeError, ValueError) as error:
        raise damaged(digest, f"{_CONFIG}: {error}") from error
    assert isinstance(config, LoraConfig)
    return config


def _json(path: Path, digest: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(digest, f"{path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise damaged(digest, f"{path.name} is no object")
    return value


def _tensors(path: Path, digest: str) -> dict[str, torch.Tensor]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise damaged(digest, f"{path.name} cannot be read: {error}") from error
