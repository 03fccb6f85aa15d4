"""What an uploaded version may consist of: a PEFT adapter or a whole model, safetensors only."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.errors import InvalidArgument
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.manifest import Manifest, ManifestFile
from tunesmith_registry import models

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LARGEST_CONFIG = 1024 * 1024
# Keys of LoRA adapters that change numbers only. Others are refused: a loader might import what they name.
_KEYS = frozenset(
    {
        "alora_invocation_tokens", "alpha_pattern", "arrow_config", "auto_mapping", "base_model_name_or_path",
        "bias", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
        "inference_mode", "init_lora_weights", "layer_replication", "layers_pattern", "layers_to_transform",
        "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config",
        "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
        "rank_pattern", "revision", "runtime_config", "target_modules", "target_parameters", "task_type",
        "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora",
    }
)  # fmt: skip
# They make PEFT import a module by name.
_EMPTY_ONLY = ("auto_mapping", "megatron_config")


def check(
    store: BlobStore, files: Sequence[ManifestFile], base_model: str, base_digest: str
) -> tuple[Manifest, str]:
    """Checks uploaded files and stores their manifest; returns it and its digest. Blocks.

    Raises:
        NotFound: a file was not uploaded.
        InvalidArgument: a file could run code, or the files are no adapter and no model.
    """
    plain = manifest.create("model", files)
    models.refuse_code(store, plain)
    paths = {file.path for file in files}
    if _CONFIG in paths:
        properties = _adapter(store, plain, paths)
    else:
        facts = models.check_base_model(store, files)
        properties = {"adapter": "full", "architecture": facts.architecture}
    properties |= {"base_model": base_model.rpartition("/")[2], "base_model_digest": base_digest}
    made = manifest.create("model", files, {**properties, "source": "upload"})
    return made, store.put_bytes(made.canonical()).digest


def _adapter(store: BlobStore, artifact: Manifest, paths: set[str]) -> dict[str, str]:
    if _WEIGHTS not in paths:
        raise _invalid(f"{_WEIGHTS} is missing", "files", _WEIGHTS)
    config = _config(store, next(file for file in artifact.files if file.path == _CONFIG))
    unknown = sorted(set(config) - _KEYS)
    if unknown:
        raise _invalid(f"{_CONFIG} has a key that is not known", f"{_CONFIG}: {unknown[0]}", unknown[0])
    for key in _EMPTY_ONLY:
        if config.get(key):
            raise InvalidArgument(
                "BASE_MODEL_UNSAFE",
                f"{_CONFIG} has {key}, which makes loaders import code",
                field=f"{_CONFIG}: {key}",
                value=config[key],
                remedy="save the adapter without it",
            )
    if config.get("peft_type") != "LORA":
        raise _invalid(
            "only LoRA adapters can be registered", f"{_CONFIG}: peft_type", config.get("peft_type")
        )
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= 65536:
        raise _invalid("the rank is no whole number from 1 up", f"{_CONFIG}: r", rank)
    weights = next(file for file in artifact.files if file.path == _WEIGHTS)
    return {"adapter": "lora", "num_parameters": str(models.count_tensors(store, weights)), "rank": str(rank)}


def _config(store: BlobStore, file: ManifestFile) -> Mapping[str, Any]:
    if file.size_bytes > _LARGEST_CONFIG:
        raise _invalid(f"{_CONFIG} is too large", _CONFIG, file.size_bytes)
    try:
        content = json.loads(store.read_bytes(file.sha256))
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{_CONFIG} is no JSON: {error}", _CONFIG) from error
    if not isinstance(content, dict):
        raise _invalid(f"{_CONFIG} is no JSON object", _CONFIG)
    return content


def _invalid(problem: str, field: str, value: object = "") -> InvalidArgument:
    return InvalidArgument(
        "BASE_MODEL_INVALID",
        problem,
        field=field,
        value=value,
        remedy="give a folder that PEFT's or transformers' save_pretrained wrote, with safetensors",
    )
