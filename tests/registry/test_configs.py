"""Files of models that must not be taken: each row of the list of bad checkpoints, with its answer."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.registry.governing import BOT, LORA, Governed, governed, person, refused
from tests.registry.support import PROJECT, base_model_files, safetensors, sha256
from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.registry.v1 import models_pb2, stages_pb2, versions_pb2

_CONFIG = {"architectures": ["LlamaForCausalLM"]}


def _with(path: str = "config.json", /, **fields: object) -> dict[str, bytes]:
    return {**base_model_files(), path: json.dumps({**_CONFIG, **fields}).encode()}


def _raw(text: str) -> dict[str, bytes]:
    return {**base_model_files(), "config.json": text.encode()}


def _weights(entries: dict[str, object], data: bytes = b"", header: bytes = b"") -> bytes:
    text = header or json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def _weighing(entries: dict[str, object], data: bytes = b"") -> dict[str, bytes]:
    return {**base_model_files(), "model.safetensors": _weights(entries, data)}


def _tensor(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


_BAD: list[tuple[dict[str, bytes], str, str]] = [
    # What makes loaders run or fetch something, however deep it is.
    (_with(auto_map={"AutoModel": "modeling.Evil"}), "BASE_MODEL_UNSAFE", "auto_map"),
    (_with(text_config={"auto_map": {"AutoConfig": "evil.Config"}}), "BASE_MODEL_UNSAFE", "auto_map"),
    (_with(text_config={"trust_remote_code": True}), "BASE_MODEL_UNSAFE", "trust_remote_code"),
    (_with(a=[{"custom_pipelines": {"x": "y"}}]), "BASE_MODEL_UNSAFE", "custom_pipelines"),
    (_with(_attn_implementation_internal="a/b"), "BASE_MODEL_UNSAFE", "_attn_implementation_internal"),
    (_with(attn_implementation="kernels-community/evil"), "BASE_MODEL_UNSAFE", "fetch a kernel"),
    (_with(x={"experts_implementation": "a/b:c"}), "BASE_MODEL_UNSAFE", "fetch a kernel"),
    (_with(quantization_config={"quant_method": "my.Quantiser"}), "BASE_MODEL_UNSAFE", "quantiser"),
    (_with(quantization_config=["x"]), "BASE_MODEL_UNSAFE", "quantiser"),
    (_with("generation_config.json", custom_generate="a/b"), "BASE_MODEL_UNSAFE", "custom_generate"),
    (_with("sub/tokenizer_config.json", auto_map={"a": "b"}), "BASE_MODEL_UNSAFE", "auto_map"),
    ({**base_model_files(), "adapter_config.json": json.dumps(LORA).encode()}, "BASE_MODEL_INVALID",
     "this is an adapter"),
    # Numbers and depths.
    (_raw('{"architectures": ["LlamaForCausalLM"], "rope_theta": NaN}'), "BASE_MODEL_INVALID", "no number"),
    (_raw('{"architectures": ["LlamaForCausalLM"], "a": [-Infinity]}'), "BASE_MODEL_INVALID", "no number"),
    (_raw('{"architectures": ["LlamaForCausalLM"], "a": 1e999}'), "BASE_MODEL_INVALID", "no number"),
    (_raw('{"a": ' + "9" * 5000 + "}"), "BASE_MODEL_INVALID", "no JSON"),
    (_raw('{"a": ' * 50_000), "BASE_MODEL_INVALID", "no JSON"),
    (_with(a=_deep(40)), "BASE_MODEL_INVALID", "nested deeper"),
    (_with(hidden_size=10**12), "BASE_MODEL_INVALID", "hidden_size"),
    (_with(vocab_size=-1), "BASE_MODEL_INVALID", "vocab_size"),
    (_with(num_hidden_layers=2.5), "BASE_MODEL_INVALID", "num_hidden_layers"),
    (_with(hidden_size=8, vocab_size=1 << 20), "BASE_MODEL_INVALID", "more than all weights"),
    (_with(filler="x" * (5 << 20)), "BASE_MODEL_INVALID", "too large"),
    # Weights.
    (_weighing({"a": _tensor([1 << 40, 1 << 40], 0, 4)}, bytes(4)), "BASE_MODEL_INVALID", "broken header"),
    (_weighing({"a": _tensor([-1], 0, 4)}, bytes(4)), "BASE_MODEL_INVALID", "broken header"),
    (_weighing({"a": _tensor([1.0], 0, 4)}, bytes(4)), "BASE_MODEL_INVALID", "broken header"),
    (_weighing({"a": _tensor([1], 8, 12)}, bytes(12)), "BASE_MODEL_INVALID", "overlap or leave gaps"),
    (_weighing({"a": _tensor([1], 0, 4), "b": _tensor([1], 0, 4)}, bytes(4)), "BASE_MODEL_INVALID", "gaps"),
    (_weighing({"a": _tensor([1], 0, 4)}, bytes(9)), "BASE_MODEL_INVALID", "belong to no tensor"),
    (_weighing({"a": _tensor([1], 0, 4)}, bytes(3)), "BASE_MODEL_INVALID", "cut off"),
    (_weighing({"a": _tensor([1], 0, 4, "PICKLE")}, bytes(4)), "BASE_MODEL_INVALID", "broken header"),
    ({**base_model_files(), "model.safetensors": _weights({}, header=b"[" * 100_000)}, "BASE_MODEL_INVALID",
     "broken header"),
    ({**base_model_files(), "model.safetensors": b"\xff" * 7 + b"\x7f{}"}, "BASE_MODEL_INVALID",
     "no safetensors"),
]  # fmt: skip


async def test_what_could_run_code_or_is_no_model_is_refused_with_its_place(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        for files, reason, said in _BAD:
            error = await refused(registry.import_base_model("bad", files))
            assert (error.reason, said in error.message) == (reason, True), (said, error.message)
            assert error.field
            assert error.remedy
        listed = await registry.models.ListBaseModels(models_pb2.ListBaseModelsRequest(parent=PROJECT))
        assert not listed.base_models


async def test_what_is_only_doubtful_is_told(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        files = _with(_name_or_path="/mnt/someone/model", trust_remote_code=False, auto_map=None)
        # A name is a key, never a path; nothing is written under it.
        files["model.safetensors"] = safetensors(**{"../../evil": (4, 8), "head": (8, 4)})
        entered = await registry.import_base_model("tiny", files)
        assert list(entered.warnings) == [
            "config.json names /mnt/someone/model as its origin; nothing is loaded from there"
        ]
        plain = await registry.import_base_model("plain", _with(_name_or_path="org/model"))
        assert not plain.warnings


async def test_a_class_of_the_models_own_needs_an_admins_word_for_that_digest(tmp_path: Path) -> None:
    files = _with(auto_map={"AutoModel": "modeling.Own"})
    name = f"{PROJECT}/models/-"

    async def allow(registry: Governed, who: str, role: str, *digests: str, model: str = name) -> None:
        policy = stages_pb2.ModelPolicy(remote_code_digests=digests, keep_archived=3)
        request = stages_pb2.SetModelPolicyRequest(name=model, policy=policy)
        await registry.stages.SetModelPolicy(request, metadata=person(who, role))

    async with governed(tmp_path) as registry:
        error = await refused(registry.import_base_model("own", files))
        digest = error.value
        assert digest in error.remedy
        assert (await refused(allow(registry, "ann", "developer", digest))).reason == "PERMISSION_MISSING"
        await registry.prepared()
        await registry.made(1)
        assert (await refused(allow(registry, "root", "admin", digest, model=BOT))).reason == "FIELD_INVALID"
        await allow(registry, "root", "admin", digest)
        await allow(registry, "ann", "developer", digest)  # what an admin allowed may stay
        entered = await registry.import_base_model("own", files)
        assert entered.digest == digest
        assert "its code is never run" in entered.warnings[0]
        other = {**files, "README.md": b"another digest"}
        assert (await refused(registry.import_base_model("other", other))).reason == "BASE_MODEL_UNSAFE"
        code = {**files, "modeling.py": b"raise SystemExit"}
        assert (await refused(registry.import_base_model("code", code))).reason == "BASE_MODEL_UNSAFE"


def _adapter(**shapes: tuple[int, ...]) -> dict[str, bytes]:
    named = {f"base_model.model.{name.replace('__', '.')}.weight": shape for name, shape in shapes.items()}
    return {
        "adapter_config.json": json.dumps(LORA).encode(),
        "adapter_model.safetensors": safetensors(**named),
    }


async def test_an_adapter_must_fit_its_base_model_and_hold_numbers(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        weights = safetensors(**{"model.q.weight": (6, 8), "model.embed.weight": (4, 8)})
        await registry.import_base_model("wide", {**base_model_files(), "model.safetensors": weights})

        async def register(files: dict[str, bytes]) -> models_pb2.ModelVersion:
            listed = [
                common_pb2.ManifestFile(path=path, size_bytes=len(data), sha256=await registry.upload(data))
                for path, data in files.items()
            ]
            request = versions_pb2.RegisterModelVersionRequest(parent=BOT, files=listed, base_model="wide")
            made: models_pb2.ModelVersion = (await registry.versions.RegisterModelVersion(request)).version
            return made

        for layer in ("model__q", "q"):  # with and without the name of the body
            shapes = {f"{layer}__lora_A": (2, 8), f"{layer}__lora_B": (6, 2)}
            assert (await register(_adapter(**shapes))).manifest.properties["num_parameters"] == "28"
        bad = {
            "for another base model: model.q is made for 6 x 9": ((2, 9), (6, 2)),
            "for another base model: model.q is made for 8 x 8": ((2, 8), (8, 2)),
        }
        for said, (first, second) in bad.items():
            error = await refused(register(_adapter(model__q__lora_A=first, model__q__lora_B=second)))
            assert (error.reason, said in error.message) == ("BASE_MODEL_INVALID", True), error.message
        error = await refused(register(_adapter(other__lora_A=(2, 8), other__lora_B=(6, 2))))
        assert "has none of its layers" in error.message
        error = await refused(register(_adapter(model__q__lora_A=(2, 8))))
        assert "lacks its second matrix" in error.message
        good = _adapter(model__q__lora_A=(2, 8), model__q__lora_B=(6, 2))
        for bits in (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff"):  # no number, minus infinity
            data = good["adapter_model.safetensors"][:-4] + bits
            error = await refused(register({**good, "adapter_model.safetensors": data}))
            assert "no numbers" in error.message
            assert sha256(data) != sha256(good["adapter_model.safetensors"])


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
async def test_weights_of_every_width_are_looked_at(tmp_path: Path, dtype: str) -> None:
    from tunesmith.errors import InvalidArgument
    from tunesmith_kit.blobs import BlobStore
    from tunesmith_kit.manifest import ManifestFile
    from tunesmith_registry import weights

    store = BlobStore.open(str(tmp_path))
    patterns = {"F16": (b"\x00\x3c", b"\x01\x7c"), "BF16": (b"\x80\x3f", b"\x80\x7f")}
    good, bad = patterns.get(dtype, (struct.pack("<d", 1.0), struct.pack("<d", float("nan"))))
    for last, fine in ((good, True), (bad, False)):
        size = len(good)
        blob = store.put_bytes(_weights({"a": _tensor([9], 0, 9 * size, dtype)}, good * 8 + last))
        file = ManifestFile("a.safetensors", blob.size_bytes, blob.digest)
        if fine:
            weights.check_finite(store, file)
            continue
        with pytest.raises(InvalidArgument, match="no numbers"):
            weights.check_finite(store, file)
