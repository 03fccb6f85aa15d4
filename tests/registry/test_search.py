"""Search: words, filters, facets, order, pages; models alike; base models that suit; no fact is late."""

import json
from pathlib import Path
from typing import Any

from tests.registry.governing import BOT, PRODUCTION, Governed, governed, refused
from tests.registry.support import PROJECT, base_model_files
from tunesmith.api.registry.v1 import cards_pb2, models_pb2, search_pb2, versions_pb2


async def _search(registry: Governed, query: str = "", **fields: Any) -> Any:
    request = search_pb2.SearchModelsRequest(parent=PROJECT, query=query, **fields)
    return await registry.search.SearchModels(request)


def _names(answer: Any) -> list[str]:
    return [found.name.removeprefix(f"{PROJECT}/models/") for found in answer.results]


async def _told(registry: Governed, model: str, **fields: Any) -> None:
    request = cards_pb2.UpdateCardSectionsRequest(name=f"{PROJECT}/models/{model}", **fields)
    await registry.cards.UpdateCardSections(request)


async def test_models_are_found_by_words_and_properties_and_changes_count_at_once(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        await registry.made(1, "bot", **{"eval/loss": 0.5})
        await registry.made(2, "poet", **{"eval/loss": 2.0})
        assert (await _search(registry)).total == 2
        await _told(registry, "bot", summary="Answers customers", tags=["support"], languages=["de"])
        await _told(
            registry, "poet", summary="Writes Gedichte über Müller", tasks=["poetry"], languages=["de"]
        )
        for query, wanted in (
            ("customers", ["bot"]),
            ("CUSTOM", ["bot"]),
            ("uber muller", ["poet"]),
            ("customers poetry", []),
            ("tiny", ["bot", "poet"]),
        ):
            assert sorted(_names(await _search(registry, query))) == wanted, query
        for filters, wanted in (
            ({"languages": ["de"]}, ["bot", "poet"]),
            ({"tags": ["support"]}, ["bot"]),
            ({"tasks": ["poetry", "x"]}, ["poet"]),
            ({"base_models": ["other"]}, []),
            ({"metrics": ["eval/loss<1"]}, ["bot"]),
            ({"metrics": ["eval/loss>=1", "eval/loss<9e0"]}, ["poet"]),
            ({"stages": [PRODUCTION]}, []),
        ):
            assert sorted(_names(await _search(registry, **filters))) == wanted, filters
        await registry.stage(1, PRODUCTION)
        assert _names(await _search(registry, stages=[PRODUCTION])) == ["bot"]
        version = (await _search(registry, stages=[PRODUCTION])).results[0].version
        found = models_pb2.ModelVersion(name=version)
        found.digest = (
            await registry.models.GetModelVersion(models_pb2.GetModelVersionRequest(name=version))
        ).version.digest
        registry.scored(found, "exact_match", 0.9)
        await registry.versions.UpdateModelVersion(
            versions_pb2.UpdateModelVersionRequest(name=version, set_labels={"team": "a"})
        )
        assert _names(await _search(registry, metrics=["exact_match>0.8"])) == ["bot"]
        assert _names(await _search(registry, tags=["team=a"])) == ["bot"]

        ordered = await _search(registry, order_by="-metric:eval/loss")
        assert _names(ordered) == ["poet", "bot"]
        first = await _search(registry, order_by="name", page_size=1)
        second = await _search(registry, order_by="name", page_size=1, page_token=first.next_page_token)
        assert (_names(first), _names(second), second.next_page_token) == (["bot"], ["poet"], "")
        other = _search(registry, order_by="-name", page_token=first.next_page_token)
        assert (await refused(other)).reason == "PAGE_TOKEN_INVALID"
        facets = {f.name: {v.value: v.count for v in f.values} for f in ordered.facets}
        assert (facets["language"], facets["stage"]) == ({"de": 2}, {"none": 1, "production": 1})
        kinds = [search_pb2.MODEL_KIND_VERSION, search_pb2.MODEL_KIND_BASE_MODEL]
        assert (await _search(registry, kinds=kinds)).total == 3
        assert (await _search(registry, kinds=kinds, model="bot")).total == 1
        for bad in ({"metrics": ["loss"]}, {"metrics": ["a<b"]}, {"order_by": "size"}):
            assert (await refused(_search(registry, **bad))).reason == "FILTER_INVALID", bad


async def test_models_alike_and_base_models_that_suit(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        shapes = {"num_hidden_layers": 1, "hidden_size": 2, "vocab_size": 2, "dtype": "bfloat16"}
        config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 128, **shapes}
        files = {**base_model_files(), "config.json": json.dumps(config).encode()}
        await registry.import_base_model("other-instruct", files)
        for number, model in enumerate(("bot", "helper", "poet"), start=1):
            await registry.made(number, model)
        await _told(registry, "bot", summary="answers customers", tags=["support"])
        await _told(registry, "helper", summary="answers clients", tags=["support"])
        await _told(registry, "poet", summary="rhymes", tags=["art"])
        similar = await registry.search.ListSimilarModels(search_pb2.ListSimilarModelsRequest(name=BOT))
        assert [_names(similar)[0], similar.mode] == ["helper", "full text"]
        gone = search_pb2.ListSimilarModelsRequest(name=f"{PROJECT}/models/nobody")
        assert (await refused(registry.search.ListSimilarModels(gone))).reason == "MODEL_NOT_FOUND"

        async def recommended(**fields: Any) -> list[str]:
            request = search_pb2.RecommendBaseModelsRequest(parent=PROJECT, **fields)
            answer = await registry.search.RecommendBaseModels(request)
            assert all(each.reasons for each in answer.recommendations)
            return [each.base_model.base_model_id for each in answer.recommendations]

        assert await recommended(task="support for customers", dataset="texts") == ["tiny", "other-instruct"]
        assert await recommended(memory_bytes=1000) == ["tiny"], "what needs more is left out"
