"""Garbage collection: nothing that is referenced goes, nothing that leaked stays."""

import os
import time
from pathlib import Path
from typing import Any

from tests.registry.governing import ARCHIVED, BOT, PRODUCTION, Governed, collected, governed
from tests.registry.support import PROJECT, jsonl
from tests.support.bus import running_nats
from tests.support.wait import until_async
from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.registry.v1 import blobs_pb2, exports_pb2, lineage_pb2, models_pb2, versions_pb2
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.holds import Holds

_OLD = time.time() - 30 * 24 * 3600


async def _collect(registry: Governed, *, dry_run: bool = False) -> Any:
    request = exports_pb2.CollectGarbageRequest(parent=PROJECT, dry_run=dry_run)
    answers = await collected(registry.exports.CollectGarbage(request))
    assert answers[-1].done
    return answers[-1]


def _stored(folder: Path) -> set[str]:
    return {path.name for path in (folder / "blobs" / "sha256").rglob("*") if path.is_file()}


def _age(folder: Path) -> None:
    for path in (folder / "blobs" / "sha256").rglob("*"):
        if path.is_file():
            os.utime(path, (_OLD, _OLD))


async def _job_deleted(registry: Governed, job_id: str, folder: Path) -> None:
    await registry.job_says("deleted", job=f"{PROJECT}/jobs/{job_id}")

    async def released() -> bool:
        return not (folder / "blobs" / "holds" / job_id).exists()

    await until_async(released, "nothing is held for the job")


async def test_what_leaked_goes_and_what_is_referenced_stays(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server:
        async with governed(tmp_path, server) as registry:
            await registry.prepared()
            version = await registry.made(1)
            kept = await registry.store_artifact("checkpoint", {"trainable.safetensors": b"kept" * 9})
            gone = await registry.store_artifact("checkpoint", {"trainable.safetensors": b"gone" * 9})
            for step, digest, expired in ((1, kept, False), (2, gone, True)):
                said = state_pb2.CheckpointRef(step=step, epoch=1, digest=digest, expired=expired)
                kind = "checkpoint_expired" if expired else "checkpoint_committed"
                await registry.job_says(kind, job=version.job, checkpoint=said)
            listing = models_pb2.ListCheckpointsRequest(parent=version.job)

            async def heard() -> bool:
                return len((await registry.models.ListCheckpoints(listing)).checkpoints) == 2

            await until_async(heard, "two checkpoints")
            await _collect(registry)
            needed = {version.digest, kept, *(file.sha256 for file in version.manifest.files)}
            assert needed <= _stored(tmp_path)
            before = _stored(tmp_path)
            leaked = {await registry.upload(b"never registered")}
            leaked |= {gone, await registry.upload(b"gone" * 9)}
            leaked.add(await registry.upload(b"\x89PNG of no run"))
            store = BlobStore.open(str(tmp_path / "blobs"))
            picture = store.put_bytes(b"\x89PNG of a run, as an agent stores it").digest
            holds = Holds.open(str(tmp_path / "blobs"))
            holds.hold("01k0000000000000000000jobb", picture)
            holds.hold("01k0000000000000000000jobc", picture)
            young = await _collect(registry)
            assert (young.num_deleted, young.num_young >= 3) == (0, True), "all is young"

            _age(tmp_path)
            asked = await registry.upload(b"uploaded long ago, asked for just now")
            _age(tmp_path)
            stat = await registry.blobs.StatBlob(blobs_pb2.StatBlobRequest(digest=asked))
            assert stat.exists
            dry = await _collect(registry, dry_run=True)
            assert _stored(tmp_path) >= before | leaked
            done = await _collect(registry)
            assert (done.num_deleted, done.bytes_deleted) == (dry.num_deleted, dry.bytes_deleted)
            left = _stored(tmp_path)
            assert leaked.isdisjoint(left)
            assert needed | {picture, asked} <= left
            assert (await _collect(registry)).num_deleted == 0, "nothing is left to do"
            await _job_deleted(registry, "01k0000000000000000000jobb", tmp_path)
            _age(tmp_path)
            await _collect(registry)
            assert _stored(tmp_path) == left - {asked}, "the other job has the same picture"
            await _job_deleted(registry, "01k0000000000000000000jobc", tmp_path)
            await _collect(registry)
            assert _stored(tmp_path) == left - {asked, picture}
        async with governed(tmp_path, server) as registry:
            # What is left is enough for everything that rows name.
            request = lineage_pb2.VerifyModelVersionRequest(name=f"{BOT}/versions/1")
            assert (await collected(registry.lineage.VerifyModelVersion(request)))[-1].intact


async def test_the_retention_policy_lets_archived_versions_go_but_not_pinned_ones(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        for number in range(1, 7):
            await registry.made(number)
        for number in (1, 2, 3, 4):
            await registry.stage(number, ARCHIVED)
        await registry.stage(5, PRODUCTION)
        pin = versions_pb2.UpdateModelVersionRequest(name=f"{BOT}/versions/1", pinned=True)
        await registry.versions.UpdateModelVersion(pin)
        alias = versions_pb2.SetModelAliasRequest(name=BOT, alias="old", version="2")
        await registry.versions.SetModelAlias(alias)
        await registry.policy(keep_archived=1)
        names = [f"{BOT}/versions/3"]
        assert list((await _collect(registry, dry_run=True)).expired_versions) == names
        assert list((await _collect(registry)).expired_versions) == names
        listed = await registry.models.ListModelVersions(models_pb2.ListModelVersionsRequest(parent=BOT))
        assert [version.version for version in listed.versions] == [6, 5, 4, 2, 1]
        deleted = await registry.answer("model_version_deleted")
        assert deleted.model_version_deleted.reason == "the retention policy let it go"
        _age(tmp_path)
        third = await registry.import_dataset("more", jsonl({"text": "c"}))
        await _collect(registry)
        assert third.version.digest in _stored(tmp_path)
