"""Model cards: YAML that the hub reads, every fact in them, sections that people edit."""

from pathlib import Path

import yaml

from tests.registry.governing import BOT, Governed, governed, person, refused
from tunesmith.api.registry.v1 import cards_pb2, models_pb2


async def _card(registry: Governed) -> tuple[dict[str, object], str]:
    request = cards_pb2.GetModelCardRequest(name=f"{BOT}/versions/1")
    text = (await registry.cards.GetModelCard(request)).card.markdown
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


async def _edit(registry: Governed, who: str = "ann", **fields: object) -> cards_pb2.CardSections:
    request = cards_pb2.UpdateCardSectionsRequest(name=BOT, **fields)  # type: ignore[arg-type]
    answer: cards_pb2.UpdateCardSectionsResponse
    answer = await registry.cards.UpdateCardSections(request, metadata=person(who))
    return answer.sections


async def test_a_card_says_what_the_registry_knows_and_what_people_wrote(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        version = await registry.made(1, "bot", **{"eval/loss": 0.25})
        registry.scored(version, "exact_match", 0.75)
        head, body = await _card(registry)
        assert head["base_model"] == "tiny"
        assert (head["license"], head["library_name"]) == ("apache-2.0", "peft")
        (result,) = head["model-index"][0]["results"]  # type: ignore[index]
        assert result["metrics"] == [{"type": "exact_match", "value": 0.75}]
        for fact in (
            version.digest,
            version.job,
            "texts@1, 2 rows",
            "| `eval/loss` |  | 0.125 | 0.25 |",
            "| `labels.n` | 1 |",
            "| texts@1 | `exact_match` | 0.75 | 0.65 to 0.85 | 20 |",
            "| `torch` | 2.10 |",
            "PeftModel.from_pretrained",
        ):
            assert fact in body, fact
        first = await _edit(registry, summary="Calm | kind.\nReally.", tags=["support"], languages=["de"])
        head, body = await _card(registry)
        assert (head["language"], head["tags"]) == (["de"], ["support", "tunesmith"])
        assert "Calm | kind.\nReally." in body
        assert await _card(registry) == (head, body), "equal facts, equal bytes"

        second = await _edit(registry, "bob", limitations="Slow.", etag=first.etag)
        assert (second.summary, second.editor) == (first.summary, "bob")
        stale = await refused(_edit(registry, limitations="Fast.", etag=first.etag))
        assert (stale.reason, "bob edited" in stale.message) == ("REVISION_CONFLICT", True)
        assert not (await _edit(registry, clear=["tags"])).tags
        assert (await refused(_edit(registry, clear=["summary"]))).reason == "FIELD_INVALID"


async def test_a_base_model_tells_its_memory_and_goes_when_nothing_needs_it(tmp_path: Path) -> None:
    async with governed(tmp_path) as registry:
        await registry.prepared()
        name = "projects/default/baseModels/tiny"
        get = models_pb2.GetBaseModelRequest(name=name)
        assert not (await registry.models.GetBaseModel(get)).HasField("memory"), "no shapes in this config"
        await registry.models.UpdateBaseModel(
            models_pb2.UpdateBaseModelRequest(
                name=name, languages=["de", "en"], tasks=["chat"], license="mit"
            )
        )
        changed = (await registry.models.GetBaseModel(get)).base_model
        assert (list(changed.languages), changed.license) == (["de", "en"], "mit")
        await registry.made(1)
        delete = models_pb2.DeleteBaseModelRequest(name=name)
        kept = await refused(registry.models.DeleteBaseModel(delete))
        assert (kept.reason, "bot/versions/1" in kept.message) == ("IN_USE", True)
