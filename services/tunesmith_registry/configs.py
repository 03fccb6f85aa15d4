"""What the JSON files of a model may say. Nothing they name is ever imported, fetched or run here; what would
make a loader do so elsewhere is refused."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from tunesmith.errors import InvalidArgument
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.manifest import Manifest, ManifestFile

# Class of the model's own; transformers falls back to its own class where it has one. A policy may allow it.
AUTO_MAP = "auto_map"
_CODE_KEYS = frozenset(
    {
        AUTO_MAP, "trust_remote_code", "custom_pipelines", "custom_pipeline", "custom_generate",
        # transformers 4.56 to 5.2 ran a kernel of the hub that these named (CVE-2026-4372, CVE-2026-5241).
        "_attn_implementation_internal", "_experts_implementation_internal", "kernel_config", "use_kernels",
    }
)  # fmt: skip
# Values with a slash name a repository of kernels: `kernels-community/flash-attn`.
_KERNEL_KEYS = frozenset(
    {"attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"}
)
_PLACE_KEYS = frozenset({"_name_or_path", "name_or_path", "base_model_name_or_path"})
_QUANTIZERS = frozenset(
    {
        "aqlm", "auto-round", "awq", "bitnet", "bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit",
        "compressed-tensors", "eetq", "fbgemm_fp8", "fp8", "fp_quant", "gptq", "higgs", "hqq", "mxfp4",
        "quanto", "spqr", "torchao", "vptq",
    }
)  # fmt: skip
# Larger ones fill a node's memory before a single weight is read.
_MOST = {
    "hidden_size": 1 << 20, "n_embd": 1 << 20, "d_model": 1 << 20, "intermediate_size": 1 << 22,
    "vocab_size": 1 << 24, "num_hidden_layers": 4096, "n_layer": 4096, "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14, "head_dim": 1 << 16, "num_experts": 1 << 14, "num_local_experts": 1 << 14,
    "max_position_embeddings": 1 << 30,
}  # fmt: skip
_DEEPEST = 32
_CONFIG_BYTES, _JSON_BYTES = 4 * 1024 * 1024, 64 * 1024 * 1024


def invalid(problem: str, field: str, value: object = "", remedy: str = "") -> InvalidArgument:
    """The error of files that are no usable model."""
    fallback = "give a folder that transformers' save_pretrained wrote, with its tokenizer"
    return InvalidArgument("BASE_MODEL_INVALID", problem, field=field, value=value, remedy=remedy or fallback)


def unsafe(problem: str, field: str, value: object, remedy: str) -> InvalidArgument:
    """The error of files that could run code."""
    return InvalidArgument("BASE_MODEL_UNSAFE", problem, field=field, value=value, remedy=remedy)


def load(store: BlobStore, artifact: Manifest, name: str) -> Mapping[str, Any]:
    """Reads a JSON object of an artifact. Raises `InvalidArgument` when it is missing, too large, or none."""
    file = next((file for file in artifact.files if file.path == name), None)
    if file is None:
        raise invalid(f"{name} is missing", "files", name)
    return _read(store, file)


def _read(store: BlobStore, file: ManifestFile) -> Mapping[str, Any]:
    name = file.path
    if file.size_bytes > (_CONFIG_BYTES if _is_config(file) else _JSON_BYTES):
        raise invalid(f"{name} is too large", name, file.size_bytes)
    try:
        content = json.loads(store.read_bytes(file.sha256))
    except (ValueError, RecursionError) as error:
        raise invalid(f"{name} is no JSON: {error}", name) from error
    if not isinstance(content, dict):
        raise invalid(f"{name} is no JSON object", name)
    return content


def _is_config(file: ManifestFile) -> bool:
    name = PurePosixPath(file.path).name.lower()
    return name.endswith("config.json") or name in ("model_index.json", "chat_template.json")


def check(store: BlobStore, artifact: Manifest) -> tuple[list[str], str]:
    """Checks all configs of an artifact.

    Returns:
        What is doubtful, for people, and the file that has `auto_map` (empty: none): whether that is
        allowed is for the caller to say.

    Raises:
        InvalidArgument: a config could make a loader run or fetch something, or a number in it is none.
    """
    doubts: list[str] = []
    own_class = ""
    for file in artifact.files:
        if not _is_config(file):
            continue
        for path, key, value in _leaves(file.path, _read(store, file), 0):
            if value and path == f"{file.path}: {AUTO_MAP}":  # deeper down it is meant to be overlooked
                own_class = own_class or file.path
            else:
                _check_leaf(file.path, path, key, value)
            if key in _PLACE_KEYS and _is_place(value):
                doubts.append(f"{file.path} names {value[:200]} as its origin; nothing is loaded from there")
    return doubts, own_class


def _leaves(path: str, value: Any, depth: int) -> Iterator[tuple[str, str, Any]]:
    """Yields every key of nested objects, as path, key and value. `path` begins with the file's name."""
    if depth > _DEEPEST:
        raise invalid(f"{path} is nested deeper than {_DEEPEST} levels", path)
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield f"{path}: {key}", str(key), item
        if isinstance(item, dict | list):
            yield from _leaves(f"{path}: {key}", item, depth + 1)


def _check_leaf(file: str, path: str, key: str, value: Any) -> None:
    if key in _CODE_KEYS and value:
        raise unsafe(
            f"{file} has {key}, which makes loaders run code of the model", path, value,
            "use a model whose architecture transformers knows by itself, and remove the key",
        )  # fmt: skip
    if key in _KERNEL_KEYS and isinstance(value, str) and ("/" in value or ":" in value):
        raise unsafe(
            f"{file} has {key}, which makes loaders fetch a kernel", path, value,
            "remove the key, or name an implementation of transformers itself, as `sdpa`",
        )  # fmt: skip
    if key == "quantization_config" and value is not None:
        _check_quantization(file, path, value)
    if isinstance(value, float) and not math.isfinite(value):
        raise invalid(f"{file} has {key}, which is no number", path, value, "write a finite number")
    _check_size(file, path, key, value)


def _check_size(file: str, path: str, key: str, value: Any) -> None:
    most = _MOST.get(key)
    if most is None or value is None or not isinstance(value, int | float) or isinstance(value, bool):
        return
    if not isinstance(value, int) or not 0 <= value <= most:
        problem = f"{file} has {key} = {str(value)[:40]}"
        raise invalid(problem, path, str(value)[:40], f"give a whole number up to {most:,}")


def _check_quantization(file: str, path: str, value: Any) -> None:
    method = value.get("quant_method") if isinstance(value, dict) else None
    # Older files of bitsandbytes name no method.
    named = method or ("bitsandbytes" if isinstance(value, dict) and _is_bitsandbytes(value) else method)
    if named not in _QUANTIZERS:
        raise unsafe(
            f"{file} wants a quantiser that is not known", path, str(method)[:100],
            f"use one of {', '.join(sorted(_QUANTIZERS))}",
        )  # fmt: skip


def _is_bitsandbytes(value: Mapping[str, Any]) -> bool:
    return "load_in_4bit" in value or "load_in_8bit" in value


def _is_place(value: Any) -> bool:
    """Whether a text is a path or an address, and no id of a hub."""
    return isinstance(value, str) and (
        value.startswith(("/", ".", "~")) or "://" in value or "\\" in value or value.count("/") > 1
    )
