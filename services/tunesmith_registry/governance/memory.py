"""How much memory a base model needs, from its config and its count of parameters. docs/models.md has the
formula; it is meant to tell 8 GB from 24 GB, not 8.0 from 8.2."""

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.api.registry.v1 import models_pb2
from tunesmith_kit.blobs import BlobStore

_RANK = 16
_DTYPE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}
_LARGEST_CONFIG = 4 * 1024 * 1024
# Per token and layer with gradient checkpointing: the layer's input is kept (2 bytes a number), and one
# layer at a time is worked out again, whose inner results are about 20 times its input.
_KEPT, _WORKED = 2, 40
_OVERHEAD = 300 * 1024 * 1024  # context of the device and its libraries


def needs(
    store: BlobStore, base: models_pb2.BaseModel, batch_size: int, max_length: int
) -> models_pb2.MemoryNeeds | None:
    """Returns the estimate, or None when the config does not tell the shapes. Blocks."""
    config = _config(store, base)
    shape = _shape(config)
    if shape is None:
        return None
    layers, hidden, inner, vocabulary = shape
    batch = batch_size or 1
    length = max_length or min(1024, base.context_length or 1024)
    stored = _DTYPE_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 4)
    tokens = batch * length
    # Logits in float32 and their gradient; often the largest single thing of a small model.
    activations = tokens * (hidden * (_KEPT * layers + _WORKED) + 2 * 4 * vocabulary)
    # Two matrices a linear layer: four of attention, three of the feed-forward part.
    adapter = layers * _RANK * (4 * 2 * hidden + 3 * (hidden + inner))
    weights = base.num_parameters * stored
    return models_pb2.MemoryNeeds(
        load_bytes=weights,
        # Weights stay as stored; of the adapter weight, gradient and two moments in float32.
        lora_bytes=weights + adapter * 16 + activations + _OVERHEAD,
        full_bytes=base.num_parameters * 16 + activations + _OVERHEAD,
        batch_size=batch,
        max_length=length,
    )


def _config(store: BlobStore, base: models_pb2.BaseModel) -> Mapping[str, Any]:
    for file in base.manifest.files:
        if file.path == "config.json" and file.size_bytes <= _LARGEST_CONFIG:
            content = json.loads(store.read_bytes(file.sha256))
            return content if isinstance(content, dict) else {}
    return {}


def _shape(config: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    layers = config.get("num_hidden_layers") or config.get("n_layer")
    hidden = config.get("hidden_size") or config.get("n_embd")
    if not isinstance(layers, int) or not isinstance(hidden, int) or min(layers, hidden) < 1:
        return None
    inner, vocabulary = config.get("intermediate_size"), config.get("vocab_size")
    return (
        layers,
        hidden,
        inner if isinstance(inner, int) and inner > 0 else 4 * hidden,
        vocabulary if isinstance(vocabulary, int) and vocabulary > 0 else 32_000,
    )
