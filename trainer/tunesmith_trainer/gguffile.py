"""Write a Hugging Face folder of Llama's architecture as one GGUF file, as llama.cpp and its kin read it.

`python -m tunesmith_trainer.gguffile FOLDER FILE --weights float32|float16|bfloat16|q8_0`

The format's own library writes the file. What it cannot say soundly is refused: other architectures, scaled
rotary embeddings, and tokenizers that split words in a way for which llama.cpp has no name that we know.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    TokenType,
    get_tensor_name_map,
    quants,
)
from safetensors import safe_open
from tokenizers import Tokenizer

from tunesmith_trainer.failure import TrainerError, invalid_input
from tunesmith_trainer.model import check_folder

WEIGHTS = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
_Q8_ROW = 32  # numbers of a block
_BYTES = {"type": "ByteLevel", "add_prefix_space": False}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def write(folder: Path, target: Path, weights: str) -> None:
    """Writes the file; it appears whole or not at all.

    Raises TrainerError, class INVALID_INPUT, for a folder that cannot be said as GGUF.
    """
    check_folder(folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    _check(config)
    partial = target.with_name(f".{target.name}.part")
    writer = GGUFWriter(partial, "llama", use_temp_file=True)
    try:
        _facts(writer, config, folder.name, weights)
        _tokenizer(writer, folder, config)
        for name, tensor in _tensors(folder, config):
            _add(writer, name, tensor, weights)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _refused(what: str) -> TrainerError:
    return invalid_input(
        "EXPORT_IMPOSSIBLE",
        f"this model cannot be written as GGUF: {what}",
        "export it as safetensors (--format merged) and use the converter of llama.cpp",
    )


def _check(config: dict[str, Any]) -> None:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    wanted: tuple[tuple[str, object, object], ...] = (
        ("model_type", config.get("model_type"), "llama"),
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
        ("attention_bias", bool(config.get("attention_bias")), False),
        ("mlp_bias", bool(config.get("mlp_bias")), False),
        ("quantization_config", "quantization_config" in config, False),
        ("rope_type", rope.get("rope_type") or rope.get("type") or "default", "default"),
    )
    for name, found, known in wanted:
        if found != known:
            raise _refused(f"{name} is {found!r}; only {known!r} can")


def _facts(writer: GGUFWriter, config: dict[str, Any], name: str, weights: str) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_name(name)
    writer.add_file_type(WEIGHTS[weights][1])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _tokenizer(writer: GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    path = folder / "tokenizer.json"
    said: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    model, decoder = said.get("model") or {}, said.get("decoder") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback") or decoder.get("type") != "ByteLevel":
        raise _refused("its tokenizer is no byte-level BPE")
    if said.get("normalizer"):
        raise _refused("its tokenizer changes texts before it reads them")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(said.get("pre_tokenizer")))
    words = {number: (word, TokenType.NORMAL) for word, number in model["vocab"].items()}
    for added in said.get("added_tokens") or ():
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        words[added["id"]] = (added["content"], kind)
    if words and max(words) >= config["vocab_size"]:
        raise _refused("its tokenizer has more tokens than the model")
    listed = [words.get(at, (f"[PAD{at}]", TokenType.UNUSED)) for at in range(config["vocab_size"])]
    writer.add_token_list([word for word, _ in listed])
    writer.add_token_types([kind for _, kind in listed])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])
    _special(writer, folder, {word: number for number, (word, _) in words.items()})


def _splitting(found: Any) -> str:
    """llama.cpp's name for how a tokenizer splits texts into words."""
    parts = (
        [_plain(part) for part in found["pretokenizers"]] if _kind(found) == "Sequence" else [_plain(found)]
    )
    split = {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False}
    known: dict[str, list[Any]] = {
        "gpt-2": [{**_BYTES, "use_regex": True}],
        "smollm": [{"type": "Digits", "individual_digits": True}, {**_BYTES, "use_regex": True}],
        "llama-bpe": [split, {**_BYTES, "use_regex": False}],
    }
    for name, wanted in known.items():
        if parts == wanted:
            return name
    raise _refused("its tokenizer splits words in a way that has no known name")


def _plain(part: Any) -> Any:
    if _kind(part) != "ByteLevel":
        return part
    return {**_BYTES, "add_prefix_space": part["add_prefix_space"], "use_regex": part.get("use_regex", True)}


def _kind(part: Any) -> str:
    return str(part.get("type")) if isinstance(part, dict) else ""


def _special(writer: GGUFWriter, folder: Path, numbers: dict[str, int]) -> None:
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    ids: dict[str, int] = {}
    for kind in ("bos", "eos", "pad", "unk"):
        token = config.get(f"{kind}_token")
        word = token.get("content") if isinstance(token, dict) else token
        if word in numbers:
            ids[kind] = numbers[word]
            getattr(writer, f"add_{kind}_token_id")(ids[kind])
    first = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").ids[:1]
    writer.add_add_bos_token(first == [ids.get("bos", -1)])
    template = folder / "chat_template.jinja"
    text = template.read_text("utf-8") if template.exists() else config.get("chat_template")
    if isinstance(text, str) and text:
        writer.add_chat_template(text)


def _tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    turned = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                found = names.get_name(name, try_suffixes=(".weight",))
                if found is None:
                    raise _refused(f"the format has no name for the tensor {name}")
                tensor = file.get_tensor(name).float().numpy()
                part = name.split(".")[-2]
                yield found, _turned(tensor, turned[part]) if part in turned else tensor


def _turned(tensor: Any, heads: int) -> Any:
    """llama.cpp rotates neighbouring rows of a head, transformers the first half with the second."""
    rows = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(tensor.shape))


def _add(writer: GGUFWriter, name: str, tensor: Any, weights: str) -> None:
    kind = WEIGHTS[weights][0]
    if tensor.ndim < 2 or (kind is GGMLQuantizationType.Q8_0 and tensor.shape[-1] % _Q8_ROW):
        kind = GGMLQuantizationType.F32  # norms are small, and kernels want them exact
    writer.add_tensor(name, quants.quantize(tensor, kind), raw_dtype=kind)


def main() -> int:
    """Writes what the command line names; gives the exit code."""
    parser = argparse.ArgumentParser(prog="tunesmith_trainer.gguffile", description=__doc__)
    parser.add_argument("folder", type=Path, help="a Hugging Face folder")
    parser.add_argument("file", type=Path, help="the file to write")
    parser.add_argument("--weights", choices=sorted(WEIGHTS), default="bfloat16")
    options = parser.parse_args()
    try:
        write(options.folder, options.file, options.weights)
    except TrainerError as error:
        sys.stderr.write(" ".join(f"{error}; {error.failure.remedy}".split()) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
