"""Downloads: deterministic, resumable anywhere, checked offline; adapters that come from outside."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.registry.governing import BOT, LORA, STAGING, Governed, collected, governed, refused
from tests.registry.support import PROJECT, safetensors
from tunesmith import proof
from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.registry.v1 import exports_pb2, lineage_pb2, versions_pb2


async def _download(registry: Governed, offset: int = 0, etag: str = "") -> tuple[bytes, Any]:
    request = exports_pb2.DownloadModelVersionRequest(name=f"{BOT}/versions/1", offset=offset, etag=etag)
    answers = await collected(registry.exports.DownloadModelVersion(request))
    return b"".join(answer.data for answer in answers), answers[0]


async def test_an_archive_is_the_same_each_time_and_from_each_place(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        version = await registry.made(1)
        whole, first = await _download(registry)
        assert (len(whole), first.file_name) == (first.total_bytes, "bot-1.tar")
        assert await _download(registry) == (whole, first)
        for offset in (1, 511, 512, 700, 2000, len(whole) - 1, len(whole)):
            rest, _ = await _download(registry, offset, first.etag)
            assert rest == whole[offset:], offset
        assert (await refused(_download(registry, len(whole) + 1))).reason == "FIELD_INVALID"
        with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
            names = {member.name for member in archive.getmembers()}
            assert names == {
                f"bot-1/{name}"
                for name in (
                    "README.md",
                    "adapter_config.json",
                    "adapter_model.safetensors",
                    "manifest.json",
                    "receipts.jsonl",
                    "signing-key.pub",
                )
            }
            card = archive.extractfile("bot-1/README.md")
            assert card is not None
            assert f"`{version.digest}`" in card.read().decode()
        await registry.stage(1, STAGING)
        assert (await refused(_download(registry, 600, first.etag))).reason == "REVISION_STALE"


async def test_what_was_taken_away_is_checked_without_a_server(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        await registry.made(1)
        whole, _ = await _download(registry)
        key = await registry.lineage.GetSigningKey(lineage_pb2.GetSigningKeyRequest())
    archive, folder = tmp_path / "bot.tar", tmp_path / "bot"
    archive.write_bytes(whole)
    proof.unpack(archive, folder)

    def problems(place: Path, public: str = "") -> list[tuple[str, str]]:
        return [(item.path, item.problem) for item in proof.verify(place, public) if item.problem]

    assert problems(archive) == problems(folder) == problems(folder, key.public_key) == []
    assert problems(folder, "0" * 64) == [("receipts.jsonl:1", "the signature does not fit the key")]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert problems(folder) == [(name, "it was changed")]
        (folder / name).unlink()
        assert problems(folder) == [(name, "it is missing")]
        (folder / name).write_bytes(data)
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"lora"', b'"full"'))
    assert problems(folder) == [("manifest.json", "no receipt says that this manifest was registered")]
    lines = folder / "receipts.jsonl"
    lines.write_bytes(lines.read_bytes().replace(b"tiny", b"huge"))
    assert ("receipts.jsonl:1", "it was changed") in problems(folder)


def _adapter(**changes: bytes | None) -> dict[str, bytes]:
    files = {
        "adapter_config.json": json.dumps(LORA).encode(),
        "adapter_model.safetensors": safetensors(a=(2, 2)),
    }
    merged: dict[str, bytes | None] = {**files, **{key.replace("__", "."): v for key, v in changes.items()}}
    return {name: data for name, data in merged.items() if data is not None}


def _config(**fields: object) -> bytes:
    return json.dumps({**LORA, **fields}).encode()


async def _register(registry: Governed, files: dict[str, bytes], **fields: Any) -> Any:
    listed = [
        common_pb2.ManifestFile(path=path, size_bytes=len(data), sha256=await registry.upload(data))
        for path, data in files.items()
    ]
    request = versions_pb2.RegisterModelVersionRequest(
        parent=BOT, files=listed, **{"base_model": "tiny", "dataset": "texts@1", **fields}
    )
    return (await registry.versions.RegisterModelVersion(request)).version


_BAD: list[tuple[dict[str, bytes], str, str]] = [
    (_adapter(adapter_model__bin=b"x"), "BASE_MODEL_UNSAFE", "is a pickle"),
    (_adapter(custom__py=b"x"), "BASE_MODEL_UNSAFE", "Python code"),
    (_adapter(adapter_model__safetensors=None), "BASE_MODEL_INVALID", "adapter_model.safetensors is missing"),
    (_adapter(adapter_model__safetensors=b"\x08" * 40), "BASE_MODEL_INVALID", "no safetensors file"),
    (_adapter(adapter_config__json=b"{"), "BASE_MODEL_INVALID", "is no JSON"),
    (_adapter(adapter_config__json=b"[" * 100_000), "BASE_MODEL_INVALID", "is no JSON"),
    (_adapter(adapter_config__json=_config(loader="os.system")), "BASE_MODEL_INVALID", "not known"),
    (
        _adapter(adapter_config__json=_config(auto_mapping={"parent_library": "evil"})),
        "BASE_MODEL_UNSAFE",
        "auto_mapping",
    ),
    (_adapter(adapter_config__json=_config(peft_type="IA3")), "BASE_MODEL_INVALID", "only LoRA"),
    (_adapter(adapter_config__json=_config(r=-1)), "BASE_MODEL_INVALID", "rank"),
    ({"../x.json": b"{}", **_adapter()}, "FIELD_INVALID", "stay inside"),
    ({"note.txt": b"no model"}, "BASE_MODEL_INVALID", "config.json is missing"),
]


async def test_adapters_from_outside_are_registered_once_and_unsafe_ones_refused(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        made = await _register(registry, _adapter(), description="from elsewhere", labels={"team": "x"})
        assert (made.version, made.job, made.creator) == (1, "", "ann")
        assert made.manifest.properties["rank"] == "8"
        assert (await _register(registry, _adapter())).version == 1
        assert (await _register(registry, _adapter(more__json=b"{}"))).version == 2
        for files, reason, said in _BAD:
            error = await refused(_register(registry, files))
            assert (error.reason, said in error.message) == (reason, True), error.message
        assert (await refused(_register(registry, _adapter(), base_model="none"))).reason == (
            "BASE_MODEL_NOT_FOUND"
        )
        verified = await collected(
            registry.lineage.VerifyModelVersion(lineage_pb2.VerifyModelVersionRequest(name=made.name))
        )
        assert verified[-1].intact
        graph = await registry.lineage.GetLineage(
            lineage_pb2.GetLineageRequest(parent=PROJECT, name=made.name)
        )
        assert {node.kind for node in graph.nodes} == {"model", "base_model", "dataset"}


def test_an_archive_that_climbs_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as made:
        info = tarfile.TarInfo("bot-1/../../evil.txt")
        made.addfile(info, io.BytesIO(b""))
    with pytest.raises(tarfile.OutsideDestinationError):
        proof.unpack(archive, tmp_path / "in" / "bot")
    assert not (tmp_path / "evil.txt").exists()
