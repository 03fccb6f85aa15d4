"""What an uploaded version may consist of: a PEFT adapter or a whole model, safetensors only."""

import math
from collections.abc import Collection, Mapping, Sequence

from tunesmith.api.registry.v1 import models_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.manifest import Manifest, ManifestFile
from tunesmith_registry import configs, models, weights
from tunesmith_registry.weights import Tensor

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
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
    store: BlobStore,
    files: Sequence[ManifestFile],
    base: models_pb2.BaseModel,
    allowed: Collection[str] = (),
) -> tuple[Manifest, str]:
    """Checks uploaded files and stores their manifest; returns it and its digest. Blocks.

    `allowed` are digests of models that may name classes of their own.

    Raises:
        NotFound: a file was not uploaded.
        InvalidArgument: a file could run code, or the files are no adapter and no model.
    """
    plain = manifest.create("model", files)
    models.refuse_code(store, plain, allowed)
    paths = {file.path for file in files}
    if _CONFIG in paths:
        properties = _adapter(store, plain, paths, base)
    else:
        facts = models.check_base_model(store, files, allowed)
        properties = {"adapter": "full", "architecture": facts.architecture}
    properties |= {"base_model": base.base_model_id, "base_model_digest": base.digest}
    made = manifest.create("model", files, {**properties, "source": "upload"})
    return made, store.put_bytes(made.canonical()).digest


def _adapter(
    store: BlobStore, artifact: Manifest, paths: set[str], base: models_pb2.BaseModel
) -> dict[str, str]:
    if _WEIGHTS not in paths:
        raise _invalid(f"{_WEIGHTS} is missing", "files", _WEIGHTS)
    config = configs.load(store, artifact, _CONFIG)
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
    file = next(file for file in artifact.files if file.path == _WEIGHTS)
    found = weights.tensors(store, file)
    _check_fit(found, _base_tensors(store, base), base.base_model_id)
    weights.check_finite(store, file)
    num_parameters = sum(math.prod(tensor.shape) for tensor in found.values())
    return {"adapter": "lora", "num_parameters": str(num_parameters), "rank": str(rank)}


def _base_tensors(store: BlobStore, base: models_pb2.BaseModel) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for listed in base.manifest.files:
        if listed.path.endswith(".safetensors"):
            found |= weights.tensors(store, ManifestFile(listed.path, listed.size_bytes, listed.sha256))
    return found


def _check_fit(found: Mapping[str, Tensor], of_base: Mapping[str, Tensor], base_id: str) -> None:
    """Compares the adapter's matrices with the weights of the base model they are added to.

    Files name a weight with or without the name of the model's body in front, and some architectures store
    it transposed. A layer that the files of the base model do not name so (tied, or fused) is let through,
    if others fit.
    """
    layers = {name.removeprefix(_PREFIX).removesuffix(_A): tensor for name, tensor in found.items()
              if name.endswith(_A)}  # fmt: skip
    plain = {name.removesuffix(".weight"): tensor.shape for name, tensor in of_base.items()}
    bodiless = {name.partition(".")[2]: shape for name, shape in plain.items()}
    num_known = 0
    for layer, first in layers.items():
        second = found.get(f"{_PREFIX}{layer}{_B}")
        if second is None:
            raise _invalid(f"{layer[:200]} lacks its second matrix", _WEIGHTS, layer[:200])
        wanted = plain.get(layer) or bodiless.get(layer) or plain.get(layer.partition(".")[2])
        num_known += wanted is not None
        if wanted is None or not len(wanted) == len(first.shape) == len(second.shape) == 2:
            continue  # a convolution's are not compared
        shape = (second.shape[0], first.shape[1])
        if sorted(shape) != sorted(wanted):
            raise _invalid(
                f"the adapter is for another base model: {layer[:200]} is made for {shape[0]} x {shape[1]}, "
                f"and of {base_id} it has {' x '.join(map(str, wanted))}",
                _WEIGHTS,
                layer[:200],
            )
    if layers and not num_known:
        raise _invalid(
            f"the adapter is for another base model: {base_id} has none of its layers", _WEIGHTS, min(layers)
        )


def _invalid(problem: str, field: str, value: object = "") -> InvalidArgument:
    return InvalidArgument(
        "BASE_MODEL_INVALID",
        problem,
        field=field,
        value=value,
        remedy="give a folder that PEFT's or transformers' save_pretrained wrote, with safetensors",
    )
