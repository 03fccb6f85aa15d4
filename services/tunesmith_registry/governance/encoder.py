"""A process that turns texts into vectors of their meaning, with numpy alone: an encoder of BERT's kind.

    python -m tunesmith_registry.governance.encoder FOLDER

A line of JSON (a list of texts) in; out a line of JSON with their number, then the vectors as float16, each
of length 1. Our own children only. torch would take 5 s to import and five times the memory for the same.
"""

import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
MODEL, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
_MOST_TOKENS = 128  # a card's first sentences say what it is about; the work grows with the length
_MOST_BYTES = 3 << 30  # of address space: the weights take 90 MB, a text of 128 tokens 10 MB


class Bert:
    """The encoder: mean over the last layer's tokens, scaled to length 1 (sentence-transformers' default)."""

    def __init__(self, folder: Path) -> None:
        """Raises `ValueError` or `OSError` when the folder holds no encoder of this kind."""
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        config: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise ValueError(f"an encoder of BERT's kind is wanted, not {config.get('model_type')}")
        self._weights: dict[str, Array] = load_file(folder / MODEL)
        self._layers, self._heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        self._epsilon = float(config["layer_norm_eps"])
        self.dim = int(config["hidden_size"])
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(min(_MOST_TOKENS, int(config["max_position_embeddings"])))
        self.encode("warm")  # a folder whose tensors do not fit is found here

    def encode(self, text: str) -> Array:
        """The vector of a text, (dim,)."""
        ids = self._tokenizer.encode(text).ids
        hidden = self._embedded(ids)
        for layer in range(self._layers):
            hidden = self._layer(f"encoder.layer.{layer}", hidden)
        mean = hidden.mean(0)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-9), np.float32)

    def _embedded(self, ids: Sequence[int]) -> Array:
        place = "embeddings"
        words = self._weights[f"{place}.word_embeddings.weight"][list(ids)]
        words = words + self._weights[f"{place}.position_embeddings.weight"][: len(ids)]
        words = words + self._weights[f"{place}.token_type_embeddings.weight"][0]
        return self._norm(f"{place}.LayerNorm", words)

    def _layer(self, place: str, hidden: Array) -> Array:
        """hidden (tokens, dim)."""
        attended = self._dense(f"{place}.attention.output.dense", self._attended(place, hidden))
        hidden = self._norm(f"{place}.attention.output.LayerNorm", attended + hidden)
        inner = _gelu(self._dense(f"{place}.intermediate.dense", hidden))
        return self._norm(f"{place}.output.LayerNorm", self._dense(f"{place}.output.dense", inner) + hidden)

    def _attended(self, place: str, hidden: Array) -> Array:
        query, key, value = (
            self._split(self._dense(f"{place}.attention.self.{name}", hidden))
            for name in ("query", "key", "value")
        )
        fit = query @ key.transpose(0, 2, 1) / np.float32(query.shape[-1] ** 0.5)
        fit = np.exp(fit - fit.max(-1, keepdims=True))
        mixed = (fit / fit.sum(-1, keepdims=True)) @ value
        return np.asarray(mixed.transpose(1, 0, 2).reshape(hidden.shape), np.float32)

    def _split(self, hidden: Array) -> Array:
        """(tokens, dim) to (heads, tokens, dim / heads)."""
        return hidden.reshape(len(hidden), self._heads, -1).transpose(1, 0, 2)

    def _dense(self, place: str, hidden: Array) -> Array:
        return np.asarray(hidden @ self._weights[f"{place}.weight"].T + self._weights[f"{place}.bias"])

    def _norm(self, place: str, hidden: Array) -> Array:
        centred = hidden - hidden.mean(-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(self._epsilon))
        return np.asarray(
            centred / spread * self._weights[f"{place}.weight"] + self._weights[f"{place}.bias"]
        )


def _gelu(x: Array) -> Array:
    """x times the normal distribution's integral. numpy has no erf: Abramowitz and Stegun 7.1.26."""
    scaled = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * scaled)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.copysign(1 - series * np.exp(-scaled * scaled), x)
    return np.asarray(x * (1 + erf) / 2, np.float32)


def _say(to: BinaryIO, head: dict[str, object], body: bytes = b"") -> None:
    to.write(json.dumps(head).encode() + b"\n" + body)
    to.flush()


def main() -> int:
    """Answers until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    out = sys.stdout.buffer
    try:
        bert = Bert(Path(sys.argv[1]))
    except Exception as error:  # the libraries raise kinds of their own; whoever started us tells people
        _say(out, {"error": f"{type(error).__name__}: {error}"[:500]})
        return 1
    _say(out, {"dim": bert.dim})
    for line in sys.stdin.buffer:
        texts: list[str] = json.loads(line)
        vectors = np.stack([bert.encode(text) for text in texts]).astype("<f2")
        _say(out, {"num": len(texts)}, vectors.tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
