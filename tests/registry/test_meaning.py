"""Search by meaning, with the real encoder: other words are found, changes followed, failures survived."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bench import registry_search
from tests.registry.governing import BOT, Governed, governed, refused
from tests.registry.support import PROJECT, jsonl
from tests.support.bus import running_nats
from tests.support.wait import until_async
from tunesmith.api.registry.v1 import cards_pb2, search_pb2
from tunesmith_registry.governance import encoder, encoding

# What people wrote, and what others may look for: no word of a question stands in its card.
CARDS = {
    "bot": "Answers questions of customers about their orders and parcels",
    "model-b": "Writes rhymes in the manner of old masters",
    "lex": "Reviews contracts and finds risky clauses",
    "medi": "Condenses what physicians wrote about patients",
}
QUESTIONS = {
    "helpdesk assistant for shoppers": "bot",
    "poetry generator": "model-b",
    "legal document analysis": "lex",
    "summarise clinical notes": "medi",
}
_CHILD = "tunesmith_registry.governance.encoder"
FULL_TEXT, MEANING = search_pb2.SEARCH_MODE_FULL_TEXT, search_pb2.SEARCH_MODE_MEANING


@pytest.fixture
def folder() -> Path:
    """Folder of the packaged encoder."""
    found = encoding.find("")
    assert found is not None, "the encoder is part of the development set: make setup"
    return found


async def _search(registry: Governed, query: str, **fields: Any) -> Any:
    request = search_pb2.SearchModelsRequest(parent=PROJECT, query=query, **fields)
    return await registry.search.SearchModels(request)


def _names(answer: Any) -> list[str]:
    return [found.name.rpartition("/")[2] for found in answer.results]


async def _told(registry: Governed, model: str, summary: str) -> None:
    name = f"{PROJECT}/models/{model}"
    await registry.cards.UpdateCardSections(cards_pb2.UpdateCardSectionsRequest(name=name, summary=summary))


async def _encoded(registry: Governed) -> None:
    """Waits until the meaning of all there is is known."""

    async def done() -> bool:
        answer = await _search(registry, "anything")
        return (answer.mode, answer.mode_reason) == ("full text and meaning", "")

    await until_async(done, "all texts are encoded", 60)


def _children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if _CHILD in child.cmdline()]


async def test_other_words_of_the_same_meaning_find_a_model(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as nats:
        async with governed(tmp_path, nats, encoder="") as registry:
            await registry.prepared()
            for number, (model, summary) in enumerate(CARDS.items(), start=1):
                await registry.made(number, model)
                await _told(registry, model, summary)
            await _encoded(registry)
            for question, wanted in QUESTIONS.items():
                words = await _search(registry, question, mode=FULL_TEXT)
                assert (_names(words), words.mode) == ([], "full text"), question
                assert words.mode_reason == "full text was asked for"
                both = await _search(registry, question)
                assert _names(both)[0] == wanted, (question, _names(both))
                meant = await _search(registry, question, mode=MEANING)
                assert (_names(meant)[0], meant.mode) == (wanted, "meaning"), question
            assert _names(await _search(registry, "pastry and dough recipes", mode=MEANING)) == []
            # Who has the word and the meaning comes before who has one of them; filters hold for both.
            assert _names(await _search(registry, "contracts"))[0] == "lex"
            assert _names(await _search(registry, "poetry generator", base_models=["other"])) == []
            ordered = await _search(registry, "poetry generator", order_by="name")
            assert (ordered.total, ordered.mode_reason) == (0, "the order is not relevance")

            before = await _search(registry, "poetry generator", mode=MEANING)
            await _told(registry, "model-b", "Bakes bread, cakes and pasta from any flour")
            await _encoded(registry)
            assert _names(await _search(registry, "pastry and dough recipes", mode=MEANING)) == ["model-b"]
            after = await _search(registry, "poetry generator", mode=MEANING)
            assert not after.results or after.results[0].score < before.results[0].score - 0.1
            await _alike_and_recommended(registry)
            assert len(_children()) == 1

        # What was encoded is kept: after a start a question alone needs the encoder.
        async with governed(tmp_path, nats, encoder="") as registry:
            first = await _search(registry, "legal document analysis", mode=MEANING)
            assert (_names(first)[0], first.mode_reason) == ("lex", "")
            await _survives_a_kill(registry)
        assert _children() == [], "the encoder ends with the registry"


async def _alike_and_recommended(registry: Governed) -> None:
    await registry.made(9, "desk")
    await _told(registry, "desk", "Helps shoppers when a delivery is late")
    await _encoded(registry)
    request = search_pb2.ListSimilarModelsRequest(name=BOT)
    similar = await registry.search.ListSimilarModels(request)
    assert (_names(similar)[0], similar.mode, similar.mode_reason) == ("desk", "full text and meaning", "")
    await registry.import_dataset(
        "wards", jsonl({"text": "x"}), description="Doctors' notes of hospital wards, to be shortened"
    )
    recommend = search_pb2.RecommendBaseModelsRequest(parent=PROJECT, dataset="wards")
    answer = await registry.search.RecommendBaseModels(recommend)
    assert answer.mode == "full text and meaning"
    assert "what medi is for is close to the task" in answer.recommendations[0].reasons


async def _survives_a_kill(registry: Governed) -> None:
    (child,) = _children()
    child.kill()
    child.wait(30)
    answer = await _search(registry, "contracts of tenants")
    assert answer.mode == "full text", "a dead encoder costs the meaning, not the answer"
    assert answer.mode_reason == "the process of the encoder ended"
    error = await refused(_search(registry, "flats", mode=MEANING))
    assert error.reason == "MEANING_UNAVAILABLE"


async def test_many_models_are_searched_by_meaning_and_paged(tmp_path: Path) -> None:
    async with governed(tmp_path, encoder="") as registry:
        await asyncio.to_thread(registry_search.fill, tmp_path, 600)
        await asyncio.to_thread(registry_search.mean, tmp_path, 600, related_to="poetry generator")
        first = await _search(registry, "poetry generator", mode=MEANING, page_size=30)
        assert (first.total, len(first.results)) == (50, 30), "of what is related the closest are of interest"
        rest = await _search(
            registry, "poetry generator", mode=MEANING, page_size=30, page_token=first.next_page_token
        )
        scores = [found.score for found in (*first.results, *rest.results)]
        assert (len(scores), rest.next_page_token) == (50, "")
        assert scores == sorted(scores, reverse=True)
        assert len({found.name for found in (*first.results, *rest.results)}) == 50


async def test_without_an_encoder_all_works_and_says_so(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        await registry.made(1, "bot")
        answer = await _search(registry, "bot")
        assert (_names(answer), answer.mode) == (["bot"], "full text")
        assert "tunesmith[search]" in answer.mode_reason
        error = await refused(_search(registry, "bot", mode=MEANING))
        assert (error.reason, error.field) == ("MEANING_UNAVAILABLE", "mode")
        similar = await registry.search.ListSimilarModels(search_pb2.ListSimilarModelsRequest(name=BOT))
        assert (similar.mode, "tunesmith[search]" in similar.mode_reason) == ("full text", True)


async def test_a_folder_that_is_no_encoder_costs_the_meaning_only(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (broken / name).write_text("{}")
    async with governed(tmp_path, encoder=str(broken)) as registry:
        await registry.prepared()
        answer = await _search(registry, "tiny", kinds=[search_pb2.MODEL_KIND_BASE_MODEL])
        assert (_names(answer), answer.mode) == (["tiny"], "full text")
        assert answer.mode_reason.startswith("the encoder cannot be used: ")


def test_the_vectors_are_those_of_the_reference(folder: Path) -> None:
    import torch
    from transformers import BertModel, BertTokenizer

    model, tokenizer = BertModel.from_pretrained(folder).eval(), BertTokenizer.from_pretrained(folder)
    ours = encoder.Bert(folder)
    for text in ("bot", "Ünïcode & 日本語 <b>", *CARDS.values(), "one long story of a whale " * 60):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=128)
        with torch.no_grad():
            mean = model(**inputs).last_hidden_state.mean(1)[0]
        wanted = torch.nn.functional.normalize(mean, dim=0).numpy()
        assert np.abs(ours.encode(text) - wanted).max() < 1e-3, text
