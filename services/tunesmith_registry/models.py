"""What a model may consist of: weights in safetensors, JSON and text. Nothing that could run code."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tunesmith.errors import InvalidArgument, NotFound
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.manifest import Manifest, ManifestFile
from tunesmith_registry import configs, weights
from tunesmith_registry.configs import invalid, unsafe

_CODE = {
    ".bin": "a pickle", ".pt": "a pickle", ".pth": "a pickle", ".pkl": "a pickle", ".pickle": "a pickle",
    ".ckpt": "a pickle", ".npy": "possibly a pickle", ".npz": "possibly a pickle", ".h5": "possibly code",
    ".keras": "possibly code", ".py": "Python code", ".pyc": "Python code", ".so": "machine code",
    ".dll": "machine code", ".sh": "a script",
}  # fmt: skip
_ALLOWED = {".safetensors", ".json", ".jsonl", ".txt", ".model", ".md", ".jinja", ".tiktoken", ".vocab", ""}
_CAUSAL = ("ForCausalLM", "LMHeadModel")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


@dataclass(frozen=True, slots=True)
class BaseModelFacts:
    """What a checked model folder is; `warnings` say what is doubtful about it."""

    manifest: Manifest
    digest: str
    architecture: str
    num_parameters: int
    context_length: int
    warnings: tuple[str, ...] = ()


def check_base_model(
    store: BlobStore, files: Sequence[ManifestFile], allowed: Collection[str] = ()
) -> BaseModelFacts:
    """Checks the uploaded files of a base model and stores their manifest. Blocks.

    `allowed` are the digests of models whose files may name a class of their own (`auto_map`); transformers'
    own class is taken all the same.

    Raises:
        NotFound: a file was not uploaded.
        InvalidArgument: a file could run code, or the files are no usable model.
    """
    plain = manifest.create("base_model", files)
    _check_files(store, plain)
    doubts, own_class = configs.check(store, plain)
    config = configs.load(store, plain, "config.json")
    architecture = _architecture(config)
    _need_whole_model(plain)
    num_parameters = _count_parameters(store, plain)
    _check_sizes(config, num_parameters)
    properties = {"architecture": architecture, "num_parameters": str(num_parameters)}
    made = manifest.create("base_model", files, properties)
    if own_class:
        _check_allowed(own_class, made.digest, allowed)
        doubts.append(f"{own_class} has auto_map, which a policy allows; its code is never run")
    digest = store.put_bytes(made.canonical()).digest
    context = _context_length(config)
    return BaseModelFacts(made, digest, architecture, num_parameters, context, tuple(doubts))


def refuse_code(store: BlobStore, artifact: Manifest, allowed: Collection[str] = ()) -> None:
    """Raises `InvalidArgument` when a file, by its name or its JSON, could make a loader run code.

    `allowed` are digests of base models as in `check_base_model`: what was made from one may have its
    `auto_map`.
    """
    _check_files(store, artifact)
    _, own_class = configs.check(store, artifact)
    if own_class:
        _check_allowed(own_class, artifact.properties.get("base_model_digest", artifact.digest), allowed)


def _check_files(store: BlobStore, artifact: Manifest) -> None:
    for file in artifact.files:
        suffix = PurePosixPath(file.path).suffix.lower()
        if suffix not in _ALLOWED:
            raise unsafe(
                f"{file.path} is {_CODE.get(suffix, 'not allowed')}", f"files[{file.path}]", file.path,
                "leave it out; weights must be safetensors (`save_pretrained` writes them)",
            )  # fmt: skip
        _check_uploaded(store, file)


def _check_allowed(name: str, digest: str, allowed: Collection[str]) -> None:
    if digest not in allowed:
        raise unsafe(
            f"{name} has auto_map, which makes loaders run code of the model", f"{name}: auto_map", digest,
            "remove the key, if transformers knows the architecture by itself; or let an admin allow it: "
            f"`tunesmith models policy --allow-code {digest}`",
        )  # fmt: skip


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


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    if not isinstance(first, str) or not first.endswith(_CAUSAL):
        raise invalid("the model is no causal language model", "config.json: architectures", first)
    return first


def _context_length(config: Mapping[str, Any]) -> int:
    lengths = (config.get(key) for key in _CONTEXT_KEYS)
    return next((length for length in lengths if isinstance(length, int) and length > 0), 0)


def _need_whole_model(artifact: Manifest) -> None:
    names = {file.path for file in artifact.files}
    if "adapter_config.json" in names:
        raise invalid(
            "this is an adapter: transformers would load the model it names in place of this one",
            "files", "adapter_config.json", "register it with `tunesmith models register`",
        )  # fmt: skip
    if not ({"tokenizer.json", "tokenizer.model"} & names or {"vocab.json", "merges.txt"} <= names):
        raise invalid("the tokenizer is missing", "files", "tokenizer.json")


def _check_sizes(config: Mapping[str, Any], num_parameters: int) -> None:
    """The config may not promise more than the files hold: a loader makes room for it first."""
    hidden = config.get("hidden_size")
    if not isinstance(hidden, int) or config.get("quantization_config"):
        return  # packed weights are counted by their bytes
    for key in ("vocab_size", "num_hidden_layers"):
        value = config.get(key)
        if isinstance(value, int) and value * hidden > num_parameters:
            raise invalid(
                f"{key} x hidden_size is more than all weights together", f"config.json: {key}", value,
                "give the config that belongs to these weights",
            )  # fmt: skip


def _count_parameters(store: BlobStore, artifact: Manifest) -> int:
    found = [file for file in artifact.files if file.path.endswith(".safetensors")]
    if not found:
        raise invalid("there are no weights", "files", "model.safetensors")
    if any(file.path == "model.safetensors.index.json" for file in artifact.files):
        index = configs.load(store, artifact, "model.safetensors.index.json")
        _need_shards(index, {file.path for file in found})
    return sum(weights.count(store, file) for file in found)


def _need_shards(index: Mapping[str, Any], present: set[str]) -> None:
    mapped = index.get("weight_map")
    shards = {str(shard) for shard in mapped.values()} if isinstance(mapped, dict) else set()
    lacking = sorted(shards - present)
    if lacking or not shards:
        raise invalid("a part of the weights is missing", "model.safetensors.index.json", lacking[:1])
