"""What a model may consist of: weights in safetensors, JSON and text. Nothing that could run code."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tunesmith.errors import InvalidArgument, NotFound
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.manifest import Manifest, ManifestFile

_CODE = {
    ".bin": "a pickle", ".pt": "a pickle", ".pth": "a pickle", ".pkl": "a pickle", ".pickle": "a pickle",
    ".ckpt": "a pickle", ".npy": "possibly a pickle", ".npz": "possibly a pickle", ".h5": "possibly code",
    ".keras": "possibly code", ".py": "Python code", ".pyc": "Python code", ".so": "machine code",
    ".dll": "machine code", ".sh": "a script",
}  # fmt: skip
_ALLOWED = {".safetensors", ".json", ".jsonl", ".txt", ".model", ".md", ".jinja", ".tiktoken", ".vocab", ""}
_CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_pipeline", "custom_generate")
_JSON_BYTES = 64 * 1024 * 1024
_HEADER_BYTES = 100 * 1024 * 1024
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@dataclass(frozen=True, slots=True)
class BaseModelFacts:
    """What a checked model folder is."""

    manifest: Manifest
    digest: str
    architecture: str
    num_parameters: int
    context_length: int


def check_base_model(store: BlobStore, files: Sequence[ManifestFile]) -> BaseModelFacts:
    """Checks the uploaded files of a base model and stores their manifest. Blocks.

    Raises:
        NotFound: a file was not uploaded.
        InvalidArgument: a file could run code, or the files are no usable model.
    """
    plain = manifest.create("base_model", files)
    refuse_code(store, plain)
    config = _json(store, plain, "config.json")
    architecture = _architecture(config)
    _need_tokenizer(plain)
    num_parameters = _count_parameters(store, plain)
    properties = {"architecture": architecture, "num_parameters": str(num_parameters)}
    made = manifest.create("base_model", files, properties)
    digest = store.put_bytes(made.canonical()).digest
    return BaseModelFacts(made, digest, architecture, num_parameters, _context_length(config))


def refuse_code(store: BlobStore, artifact: Manifest) -> None:
    """Raises `InvalidArgument` when a file, by its name or its JSON, could make a loader run code."""
    for file in artifact.files:
        suffix = PurePosixPath(file.path).suffix.lower()
        if suffix not in _ALLOWED:
            raise InvalidArgument(
                "BASE_MODEL_UNSAFE",
                f"{file.path} is {_CODE.get(suffix, 'not allowed')}",
                field=f"files[{file.path}]",
                value=file.path,
                remedy="leave it out; weights must be safetensors (`save_pretrained` writes them)",
            )
        _check_uploaded(store, file)
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json", "generation_config.json"):
        if any(file.path == name for file in artifact.files):
            _refuse_code_keys(name, _json(store, artifact, name))


def _check_uploaded(store: BlobStore, file: ManifestFile) -> None:
    blob = store.stat(file.sha256)
    store.renew(file.sha256)
    if blob is None:
        raise NotFound(
            "BLOB_NOT_FOUND",
            f"{file.path} was not uploaded",
            field=f"files[{file.path}]",
            value=file.sha256,
            remedy="upload it first (UploadBlob)",
        )
    if blob.size_bytes != file.size_bytes:
        raise InvalidArgument(
            "DIGEST_MISMATCH",
            f"{file.path} has {blob.size_bytes} bytes",
            field=f"files[{file.path}].size_bytes",
            value=file.size_bytes,
            remedy="give the size of the uploaded file",
        )


def _refuse_code_keys(name: str, content: Mapping[str, Any]) -> None:
    for key in _CODE_KEYS:
        if content.get(key):
            raise InvalidArgument(
                "BASE_MODEL_UNSAFE",
                f"{name} has {key}, which makes loaders run code of the model",
                field=f"{name}: {key}",
                value=content[key],
                remedy="use a model whose architecture transformers knows by itself, and remove the key",
            )


def _invalid(problem: str, field: str, value: object = "", remedy: str = "") -> InvalidArgument:
    fallback = "give a folder that transformers' save_pretrained wrote, with its tokenizer"
    return InvalidArgument("BASE_MODEL_INVALID", problem, field=field, value=value, remedy=remedy or fallback)


def _json(store: BlobStore, artifact: Manifest, name: str) -> Mapping[str, Any]:
    file = next((file for file in artifact.files if file.path == name), None)
    if file is None:
        raise _invalid(f"{name} is missing", "files", name)
    if file.size_bytes > _JSON_BYTES:
        raise _invalid(f"{name} is too large", name, file.size_bytes)
    try:
        content = json.loads(store.read_bytes(file.sha256))
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{name} is no JSON: {error}", name) from error
    if not isinstance(content, dict):
        raise _invalid(f"{name} is no JSON object", name)
    return content


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    if not isinstance(first, str) or not first.endswith(_CAUSAL):
        raise _invalid("the model is no causal language model", "config.json: architectures", first)
    return first


def _context_length(config: Mapping[str, Any]) -> int:
    lengths = (config.get(key) for key in _CONTEXT_KEYS)
    return next((length for length in lengths if isinstance(length, int) and length > 0), 0)


def _need_tokenizer(artifact: Manifest) -> None:
    names = {file.path for file in artifact.files}
    if not ({"tokenizer.json", "tokenizer.model"} & names or {"vocab.json", "merges.txt"} <= names):
        raise _invalid("the tokenizer is missing", "files", "tokenizer.json")


def _count_parameters(store: BlobStore, artifact: Manifest) -> int:
    weights = [file for file in artifact.files if file.path.endswith(".safetensors")]
    if not weights:
        raise _invalid("there are no weights", "files", "model.safetensors")
    if any(file.path == "model.safetensors.index.json" for file in artifact.files):
        _need_shards(_json(store, artifact, "model.safetensors.index.json"), {file.path for file in weights})
    return sum(count_tensors(store, file) for file in weights)


def _need_shards(index: Mapping[str, Any], present: set[str]) -> None:
    mapped = index.get("weight_map")
    shards = {str(shard) for shard in mapped.values()} if isinstance(mapped, dict) else set()
    lacking = sorted(shards - present)
    if lacking or not shards:
        raise _invalid("a part of the weights is missing", "model.safetensors.index.json", lacking[:1])


def count_tensors(store: BlobStore, file: ManifestFile) -> int:
    """Parameters of a safetensors file, counted from its header: 8 bytes of length, then JSON."""
    length = int.from_bytes(store.read_range(file.sha256, 0, 8), "little")
    if not 2 <= length <= min(_HEADER_BYTES, file.size_bytes - 8):
        raise _invalid(f"{file.path} is no safetensors file", file.path)
    try:
        header = json.loads(store.read_range(file.sha256, 8, length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        ends = [int(entry["data_offsets"][1]) for entry in tensors]
        count = sum(math.prod(int(size) for size in entry["shape"]) for entry in tensors)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise _invalid(f"{file.path} has a broken header: {error}", file.path) from error
    if max(ends, default=0) != file.size_bytes - 8 - length:
        raise _invalid(f"{file.path} is cut off", file.path, file.size_bytes, "upload the file again")
    return count
