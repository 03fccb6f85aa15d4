"""What governs models, on PostgreSQL: where its SQL differs, the answers do not."""

from pathlib import Path

from tests.registry.governing import ARCHIVED, BOT, PRODUCTION, collected, governed
from tests.registry.support import PROJECT
from tests.support.postgres import running
from tunesmith.api.registry.v1 import (
    cards_pb2,
    exports_pb2,
    lineage_pb2,
    models_pb2,
    search_pb2,
    stages_pb2,
    versions_pb2,
)


async def test_the_same_answers_on_postgresql(tmp_path: Path) -> None:
    with running() as database:
        async with governed(tmp_path, database_url=database.url) as registry:
            await registry.prepared()
            first = await registry.made(1)
            await registry.made(2)
            await registry.versions.SetModelAlias(
                versions_pb2.SetModelAliasRequest(name=BOT, alias="champion", version="2")
            )
            registry.scored(first, "exact_match", 0.9)
            await registry.policy(
                gates=[stages_pb2.Gate(dataset="texts@1", metric="exact_match", at_least=0.8)]
            )
            await registry.stage(1, PRODUCTION)
            await registry.policy()
            await registry.stage("champion", PRODUCTION)
            await registry.stages.RollBackModel(stages_pb2.RollBackModelRequest(name=BOT))
            get = models_pb2.GetModelVersionRequest(name=f"{BOT}/versions/champion")
            assert (await registry.models.GetModelVersion(get)).version.stage == ARCHIVED
            await registry.cards.UpdateCardSections(
                cards_pb2.UpdateCardSectionsRequest(name=BOT, summary="answers", languages=["de"])
            )
            search = search_pb2.SearchModelsRequest(
                parent=PROJECT, query="answers", metrics=["exact_match>0.8"]
            )
            assert (await registry.search.SearchModels(search)).total == 1
            verify = lineage_pb2.VerifyModelVersionRequest(name=f"{BOT}/versions/production")
            assert (await collected(registry.lineage.VerifyModelVersion(verify)))[-1].intact
            graph = await registry.lineage.GetLineage(
                lineage_pb2.GetLineageRequest(parent=PROJECT, name=f"{BOT}/versions/1")
            )
            assert {"dataset", "job", "model", "stage_change"} <= {node.kind for node in graph.nodes}
            sweep = exports_pb2.CollectGarbageRequest(parent=PROJECT)
            assert (await collected(registry.exports.CollectGarbage(sweep)))[-1].done
