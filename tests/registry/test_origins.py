"""Base models from hubs and GGUF files, and versions pushed to a hub; by command line and SDK."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.registry.governing import LORA
from tests.registry.hub import COMMIT, TOKEN, Hub, running
from tests.registry.support import base_model_files, safetensors
from tests.support.platform import Platform, embedded, tiny_model
from tunesmith import gguf
from tunesmith.cli import main
from tunesmith.errors import InvalidArgument, NotFound, PermissionDenied


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with embedded(tmp_path_factory.mktemp("platform")) as found:
        yield found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    unwanted = {
        "pytorch_model.bin": b"\x80\x04.", "modeling_own.py": b"raise", "onnx/model.onnx": b"x",
        "consolidated.safetensors": b"twice", "README.md": b"# tiny", ".gitattributes": b"",
    }  # fmt: skip
    made = Hub({"org/Tiny_Model": {**base_model_files(), **unwanted}, "org/pickles": {"model.bin": b"x"}})
    with running(made) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield found


def test_a_model_of_a_hub_is_entered_without_what_could_run(
    platform: Platform, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNESMITH_ADDRESS", platform.address)
    monkeypatch.setenv("TUNESMITH_TOKEN", platform.token)
    assert main(["models", "import", "hf:org/Tiny_Model@main"]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "modeling_own.py, onnx/model.onnx, pytorch_model.bin" in " ".join(said.out.split())
    assert sorted(set(hub.fetched)) == ["config.json", "model.safetensors", "tokenizer.json"]
    with platform.client() as client:
        base = client.models.base("tiny_model").base_model
        assert (base.license, base.source) == ("apache-2.0", f"hf:org/Tiny_Model@{COMMIT}")
        assert base.facts["hub.commit"] == COMMIT
        assert hub.tokens == {TOKEN}
        for source, kind in (
            ("hf:org/none", NotFound),
            ("hf:org/Tiny_Model@v9", NotFound),
            ("hf:org/pickles", InvalidArgument),
            ("hf:../x/y", InvalidArgument),
            ("hf:one", InvalidArgument),
        ):
            with pytest.raises(kind) as refused:
                client.models.import_base(source)
            assert TOKEN not in str(refused.value)
            assert refused.value.remedy
    assert "model.bin" not in hub.fetched
    assert main(["models", "base", "tiny_model"]) == 0
    shown = capsys.readouterr().out
    assert COMMIT in shown
    assert TOKEN not in said.out + said.err + shown + (platform.root / "up.log").read_text()


def test_a_version_is_pushed_to_a_hub_as_one_commit(
    platform: Platform, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Read when the library is first imported, which another test of this process may have done.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(LORA))
    (adapter / "adapter_model.safetensors").write_bytes(safetensors(a=(2, 2)))
    base = tmp_path / "base"
    base.mkdir()
    for name, data in base_model_files().items():
        (base / name).write_bytes(data)
    with platform.client() as client:
        client.models.import_base(base, "pushed-base")
        client.versions.register("pushed", adapter, base_model="pushed-base")
        where = client.exports.push("pushed@1", "hf:me/pushed")
        assert where == f"{hub.address}/me/pushed/commit/{COMMIT}"
        assert (hub.made[0]["name"], hub.made[0].get("private"), hub.made[0].get("visibility")) in (
            ("pushed", True, None),
            ("pushed", None, "private"),
        )
        stored = hub.repos["me/pushed"]
        assert stored["adapter_model.safetensors"] == safetensors(a=(2, 2))
        assert {"README.md", "manifest.json", "receipts.jsonl", "signing-key.pub"} <= set(stored)
        monkeypatch.setenv("HF_TOKEN", "hf_another")
        with pytest.raises(PermissionDenied) as refused:
            client.exports.push("pushed@1", "hf:me/pushed")
        assert "hf_another" not in str(refused.value)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _gguf(path: Path, *keys: bytes, num_keys: int | None = None, version: int = 3, tail: bytes = b"") -> Path:
    count = len(keys) if num_keys is None else num_keys
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, count) + b"".join(keys) + tail)
    return path


def _list(depth: int) -> bytes:
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 4, 0)


_BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"keys": [_string("a") + struct.pack("<IQ", 8, 1 << 60)]}, "beyond its end"),
    ({"keys": [_string("a") + struct.pack("<IIQ", 9, 8, 1 << 60)]}, "claims"),
    ({"keys": [_string("a") + struct.pack("<IIQ", 9, 8, 10_000_000)]}, "beyond its end"),
    ({"keys": [_string("a") + struct.pack("<I", 9) + _list(9)]}, "too deep"),
    ({"keys": [_string("a") + struct.pack("<I", 99)]}, "unknown type 99"),
    ({"keys": [struct.pack("<Q", 1 << 20) + b"x" * (1 << 20)]}, "bytes long"),
    ({"num_keys": 1 << 40}, "claims"),
    ({"keys": [_string("split.count") + struct.pack("<IH", 2, 3)]}, "one part of several"),
    ({"version": 1}, "version 1"),
    ({"version": 3 << 24}, "big-endian"),
]


def test_a_broken_or_lying_gguf_header_is_named_without_reading_much(
    platform: Platform, tmp_path: Path
) -> None:
    for place, (how, said) in enumerate(_BROKEN):
        fields = dict(how)
        file = _gguf(tmp_path / f"{place}.gguf", *fields.pop("keys", ()), **fields)
        with pytest.raises(InvalidArgument, match=said):
            gguf.read(file)
    (tmp_path / "text.gguf").write_text("hello, this is no model at all")
    with platform.client() as client, pytest.raises(InvalidArgument, match="does not begin like one"):
        client.models.import_base(tmp_path / "text.gguf")


def _written(path: Path) -> Path:
    """The tiny model as GGUF, tokenizer and all, by the library of the format."""
    import numpy as np
    from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
    from safetensors.numpy import load_file

    config = json.loads((tiny_model() / "config.json").read_text())
    tokens = json.loads((tiny_model() / "tokenizer.json").read_text())["model"]
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny test model")
    writer.add_license("MIT")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_file_type(0)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    words = sorted(tokens["vocab"], key=tokens["vocab"].__getitem__)
    words += [f"<unused{n}>" for n in range(config["vocab_size"] - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<|") else 1 for word in words])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokens["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(tiny_model() / "model.safetensors").items():
        found = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(str(found), np.asarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_becomes_a_base_model_with_what_it_says_of_itself(
    platform: Platform, tmp_path: Path
) -> None:
    config = json.loads((tiny_model() / "config.json").read_text())
    file = _written(tmp_path / "Tiny-F32.gguf")
    found = gguf.read(file)
    assert (found.architecture, found.name, found.license) == ("llama", "Tiny test model", "MIT")
    assert (found.context_length, found.quantization) == (config["max_position_embeddings"], "F32")
    with platform.client() as client:
        base = client.models.import_base(file)
        assert (base.base_model_id, base.architecture, base.license) == (
            "tiny-f32",
            "LlamaForCausalLM",
            "MIT",
        )
        assert base.context_length == found.context_length
        assert base.num_parameters == found.num_parameters
        assert base.facts["gguf.quantization"] == "F32"
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(file.read_bytes()[:-100_000])
        with pytest.raises(InvalidArgument, match="was cut off"):
            client.models.import_base(cut)
    shown = platform.run("models", "base", "tiny-f32")
    assert "gguf.name" in shown.stdout
    assert "Tiny test model" in shown.stdout
