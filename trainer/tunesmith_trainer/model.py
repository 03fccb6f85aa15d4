"""The base model and what is trained of it. Nothing in a model's folder is ever executed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from tunesmith_trainer.failure import FailureClass, TrainerError, classify, invalid_input
from tunesmith_trainer.run import Lora, Precision, Spec
from tunesmith_trainer.seeds import Domain, seed_torch

_CODE = frozenset({".py", ".pyc", ".so", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})
# `_attn_implementation_internal` made transformers 4.56 to 5.2 run a kernel from the hub (CVE-2026-4372).
_CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "_attn_implementation_internal"})
_SAFE = "use a model of safetensors that needs no code of its own"


def check_folder(folder: Path) -> None:
    """Refuse a model folder that holds code or pickles, or asks for code in one of its JSON files."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _CODE:
            raise invalid_input(
                "MODEL_UNSAFE", f"the base model holds {path.name}, which could run code", _SAFE
            )
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise invalid_input(
                "MODEL_INVALID", f"{name} of the base model is not JSON: {error}", _SAFE
            ) from error
        if isinstance(value, dict):
            value.pop("auto_map", None)  # a policy let it in; `trust_remote_code=False` passes it over
        if keys := sorted(set(_keys(value)) & _CODE_KEYS):
            raise invalid_input(
                "MODEL_UNSAFE", f"{name} of the base model has `{keys[0]}`, which runs code", _SAFE
            )
    if not (folder / "config.json").exists() or not any(folder.glob("*.safetensors")):
        raise invalid_input(
            "MODEL_INVALID",
            f"{folder} lacks config.json or a *.safetensors file",
            "give a Hugging Face folder",
        )


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)


@dataclass(frozen=True, slots=True)
class Model:
    """A model made ready for training.

    `module` is what is saved (a PeftModel with LoRA), `causal` the causal language model within it.
    """

    module: PreTrainedModel | PeftModel
    causal: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    device: torch.device
    precision: Precision

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Parameters that are trained, by name; tied ones once."""
        return {name: item for name, item in self.module.named_parameters() if item.requires_grad}

    def autocast(self) -> torch.autocast:
        """The context of every forward pass; it changes nothing in float32."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision is Precision.BFLOAT16
        )


def load(folder: Path, spec: Spec, device: torch.device) -> Model:
    """Load the base model and put the adapter on it. Master weights are 32-bit; the seed decides new ones."""
    causal, tokenizer = read(folder, device, torch.float32)
    module = causal if spec.lora is None else _with_lora(causal, spec, spec.lora)
    model = Model(module, causal, tokenizer, device, spec.training.precision)
    if spec.training.precision is Precision.BFLOAT16:
        _halve_frozen(causal)
    return model


def read(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a model folder, checked: the causal language model on `device` in `dtype`, and its tokenizer.

    Raises TrainerError, class INVALID_INPUT, when it is unsafe or no usable model.
    """
    check_folder(folder)
    logging.disable_progress_bar()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except Exception as error:  # the libraries raise all kinds for files that are not a model
        if classify(error).failure_class is not FailureClass.USER_ERROR or getattr(error, "errno", None):
            raise
        raise _invalid(f"{type(error).__name__}: {error}") from error
    causal, told = loaded
    if missing := sorted(told["missing_keys"]):
        raise _invalid(f"its weights lack {missing[0]} and would be random there")
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise invalid_input(
            "MODEL_INVALID", "the base model has no tokenizer.json", "save its tokenizer as a fast one"
        )
    torch.nn.Module.to(causal, device)
    return causal, tokenizer


def _invalid(why: str) -> TrainerError:
    message = f"the base model cannot be loaded: {why}"
    return invalid_input(
        "MODEL_INVALID", message[:1000], "check the folder with transformers on your machine"
    )


def lora_config(lora: Lora) -> LoraConfig:
    """The adapter of a job as PEFT has it."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # PEFT declares int and takes any number
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
        bias="none",
    )


def _with_lora(causal: PreTrainedModel, spec: Spec, lora: Lora) -> PeftModel:
    seed_torch(spec.training.seed, Domain.INITIALIZE, 0)
    try:
        module = get_peft_model(causal, lora_config(lora))
    except ValueError as error:
        raise invalid_input(
            "ADAPTER_INVALID",
            f"adapter.lora.target_modules is {list(lora.target_modules)}: {error}"[:1000],
            "name linear layers of the base model, or leave it empty for all of them",
        ) from error
    assert isinstance(module, PeftModel)
    return module


def _halve_frozen(causal: PreTrainedModel) -> None:
    """Keep frozen linear weights in bfloat16 only.

    Autocast would round them to the same bits anew in each forward pass: it caches trained weights only.
    A head tied to the embedding stays: the embedding is read in 32 bits.
    """
    embedding = causal.get_input_embeddings().weight
    for module in causal.modules():
        if (
            isinstance(module, torch.nn.Linear)
            and not module.weight.requires_grad
            and module.weight is not embedding
        ):
            module.weight.data = module.weight.data.to(torch.bfloat16)


class Scorer:
    """Logits at label positions only.

    The head is the most costly layer of a small model (21 % of a 135 M one, most of a tiny one), and most
    positions ask for nothing. A hook picks the positions before the head, so that whatever the model does to
    its logits afterwards (capping, scaling) stays as it is.
    """

    def __init__(self, model: Model) -> None:
        self._causal = model.causal
        self._positions: torch.Tensor | None = None
        self._hook = model.causal.get_output_embeddings().register_forward_pre_hook(self._select)

    def remove(self) -> None:
        """Leave the model as it was."""
        self._hook.remove()

    def logits(
        self, input_ids: torch.Tensor, positions: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """input_ids (rows, tokens), positions (labels,) into it flat: logits (labels, vocabulary).

        With position_ids (rows, tokens) that begin anew within a row, no example sees the one before it.
        """
        self._positions = positions
        # Transformers makes the mask block-diagonal where position_ids fall back; without them it needs none.
        places = {} if position_ids is None else {"position_ids": position_ids}
        output = self._causal(input_ids=input_ids, use_cache=False, **places)
        logits: torch.Tensor = output.logits.flatten(0, 1)
        # A model that does not call its head as a module gave all positions.
        return logits if self._positions is None else logits.index_select(0, self._take())

    def _take(self) -> torch.Tensor:
        positions, self._positions = self._positions, None
        assert positions is not None
        return positions

    def _select(
        self, head: torch.nn.Module, args: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...] | None:
        if self._positions is None:
            return None
        return (args[0].flatten(0, 1).index_select(0, self._take()).unsqueeze(0), *args[1:])
