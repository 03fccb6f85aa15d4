"""Lineage, receipts and their chain; verification names the item of which one byte was flipped."""

import json
from pathlib import Path
from typing import Any

from sqlalchemy import update

from tests.registry.governing import BOT, PRODUCTION, Governed, collected, governed, refused
from tests.registry.support import PROJECT, base_model_files
from tests.support.bus import running_nats
from tests.support.wait import until_async
from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.registry.v1 import lineage_pb2
from tunesmith_registry import ledger
from tunesmith_registry.tables import RECEIPTS


async def _checkpointed(registry: Governed, job: str) -> str:
    kept = await registry.store_artifact("checkpoint", {"trainable.safetensors": b"weights" * 9})
    committed = state_pb2.CheckpointRef(step=10, epoch=1, digest=kept, size_bytes=63)
    await registry.job_says("checkpoint_committed", job=job, checkpoint=committed)
    gone = state_pb2.CheckpointRef(step=5, epoch=1, digest="0" * 64, expired=True)
    await registry.job_says("checkpoint_expired", job=job, checkpoint=gone)

    async def known() -> bool:
        return len(await _nodes(registry, job, "checkpoint")) == 2

    await until_async(known, "two checkpoints")
    return kept


async def _nodes(registry: Governed, name: str, kind: str) -> list[lineage_pb2.LineageNode]:
    answer = await registry.lineage.GetLineage(lineage_pb2.GetLineageRequest(parent=PROJECT, name=name))
    return [node for node in answer.nodes if node.kind == kind]


async def _verify(registry: Governed, name: str = f"{BOT}/versions/1") -> tuple[Any, list[Any]]:
    request = lineage_pb2.VerifyModelVersionRequest(name=name)
    answers = await collected(registry.lineage.VerifyModelVersion(request))
    assert answers[-1].done
    return answers[-1], [a.item for a in answers if a.HasField("item") and not a.item.intact]


def _flip(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def test_the_graph_goes_from_data_to_stage_changes_and_back(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        version = await registry.made(1)
        await _checkpointed(registry, version.job)
        await registry.stage(1, PRODUCTION)
        registry.scored(version, "exact_match", 0.5)
        request = lineage_pb2.GetLineageRequest(parent=PROJECT, name=f"{BOT}/versions/production")
        answer = await registry.lineage.GetLineage(request)
        kinds = {node.kind for node in answer.nodes}
        assert {"model", "job", "dataset", "base_model", "stage_change"} <= kinds
        edges = {(edge.from_node, edge.to_node, edge.relation) for edge in answer.edges}
        data = f"{PROJECT}/datasets/texts/versions/1"
        assert {
            (data, version.job, "trained"),
            (f"{PROJECT}/baseModels/tiny", version.job, "trained"),
            (version.job, version.name, "registered"),
        } <= edges
        (job,) = (node for node in answer.nodes if node.kind == "job")
        assert (json.loads(job.facts["spec"])["labels"], job.distance) == ({"n": "1"}, -1)
        down = lineage_pb2.GetLineageRequest(
            parent=PROJECT, name=data, direction=lineage_pb2.LINEAGE_DIRECTION_DOWNSTREAM
        )
        found = {node.kind for node in (await registry.lineage.GetLineage(down)).nodes}
        assert {"dataset", "job", "attempt", "checkpoint", "model", "stage_change"} <= found
        one = lineage_pb2.GetLineageRequest(parent=PROJECT, name=data, depth=1)
        assert {n.kind for n in (await registry.lineage.GetLineage(one)).nodes} == {"dataset", "job"}
        for name in ("nonsense", "projects/other/models/bot/versions/1"):
            bad = lineage_pb2.GetLineageRequest(parent=PROJECT, name=name)
            assert (await refused(registry.lineage.GetLineage(bad))).reason == "NAME_INVALID"


async def test_one_flipped_byte_anywhere_is_named(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        version = await registry.made(1)
        kept = await _checkpointed(registry, version.job)
        await registry.stage(1, PRODUCTION)
        result, damaged = await _verify(registry)
        assert (result.intact, damaged) == (True, [])
        assert result.num_items > 8
        assert result.bytes_done == result.bytes_total > 0

        stored = tmp_path / "blobs" / "sha256"
        weights = next(f for f in version.manifest.files if f.path == "adapter_model.safetensors")
        config = await registry.upload(base_model_files()["config.json"])
        for digest, resource, path in (
            (weights.sha256, version.name, weights.path),
            (config, f"{PROJECT}/baseModels/tiny", "config.json"),
            (version.digest, version.name, ""),
            (kept, f"{version.job}/checkpoints/{kept}", ""),
        ):
            file = stored / digest[:2] / digest
            whole = file.read_bytes()
            _flip(file)
            result, damaged = await _verify(registry)
            assert not result.intact
            assert [(item.resource, item.path, item.wanted) for item in damaged] == [(resource, path, digest)]
            assert damaged[0].found not in ("", digest)
            file.write_bytes(whole)
        (stored / weights.sha256[:2] / weights.sha256).unlink()
        _, damaged = await _verify(registry)
        assert [(item.path, item.found, item.message) for item in damaged] == [
            (weights.path, "", "the file is missing")
        ]


async def test_a_chain_that_was_tampered_with_is_noticed(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, governed(tmp_path, server) as registry:
        await registry.prepared()
        await registry.made(1)
        await registry.stage(1, PRODUCTION)
        receipts = (await registry.lineage.ListReceipts(_list())).receipts
        kinds = [receipt.kind for receipt in reversed(receipts)]
        assert kinds == [
            "base_model_imported",
            "dataset_version_created",
            "model_version_registered",
            "model_version_stage_changed",
        ]
        assert all(receipt.signature for receipt in receipts)
        assert [r.previous for r in receipts] == [*(r.digest for r in receipts[1:]), ledger.FIRST]
        key = tmp_path / "signing.key"
        assert key.stat().st_mode & 0o777 == 0o600

        body = receipts[1].body

        def put(text: str, digest: str) -> None:
            change = update(RECEIPTS).where(RECEIPTS.c.sequence == 3)
            registry.execute(change.values(body=text, digest=digest))

        put(body.replace("bot", "bat"), receipts[1].digest)
        _, damaged = await _verify(registry)
        assert ("receipts/3", "the receipt was changed") in [(i.resource, i.message) for i in damaged]

        forged = body.replace('"eval/loss":1.0', '"eval/loss":0.1')
        assert forged != body
        put(forged, ledger.digest_of(forged))
        _, damaged = await _verify(registry)
        assert {item.message for item in damaged} >= {
            "the signature does not fit",
            "previous of the receipt does not fit",
        }
        put(body, receipts[1].digest)
        assert (await _verify(registry))[0].intact
        registry.execute("delete from receipts where sequence = 2")
        _, damaged = await _verify(registry)
        assert "a receipt is missing" in [item.message for item in damaged]


def _list() -> lineage_pb2.ListReceiptsRequest:
    return lineage_pb2.ListReceiptsRequest(parent=PROJECT)
