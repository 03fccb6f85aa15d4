"""Search and listing in a registry of 10,000 models and 10,000 versions of one model.

`python -m bench.registry_search` prints a table and a line of JSON. All goes over gRPC to a running registry
with SQLite; the first question, which reads the index, is told by itself.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import create_engine, insert
from sqlalchemy.orm import Session

from tests.registry.governing import Governed, governed
from tests.registry.support import PROJECT
from tunesmith.api.registry.v1 import cards_pb2, models_pb2, search_pb2
from tunesmith_kit.ids import new_ulid
from tunesmith_registry.governance.encoding import Encoder, find
from tunesmith_registry.governance.entries import model_entries
from tunesmith_registry.governance.tables import CARD_SECTIONS
from tunesmith_registry.governance.vectors import Lacking, store
from tunesmith_registry.tables import MODEL_VERSIONS, MODELS

_WORDS = [f"{a}{b}" for a in ("sum", "trans", "chat", "code", "legal", "med", "poem", "quiz") for b in
          ("mary", "late", "ting", "review", "text", "ical", "bot", "er", "ing", "s")]  # fmt: skip
_TASKS = ("summarization", "translation", "chat", "classification")
_BASES = [f"base-{number}" for number in range(20)]


def fill(folder: Path, num: int, seed: int = 1) -> None:
    """Writes `num` models with a version and a card each, and `num` versions of the model `many`."""
    engine = create_engine(f"sqlite:///{folder / 'registry.db'}")
    dice, now = random.Random(seed), datetime.now(UTC)
    models, versions, cards = [], [], []
    for number in range(num):
        models.append(_model(f"model-{number}", 1, now))
        versions.append(_version(f"model-{number}", 1, dice))
        versions.append(_version("many", number + 1, dice))
        cards.append(_card(f"model-{number}", dice))
    models.append(_model("many", num, now))
    with engine.begin() as connection:
        connection.execute(insert(MODELS), models)
        connection.execute(insert(MODEL_VERSIONS), versions)
        connection.execute(insert(CARD_SECTIONS), cards)
    engine.dispose()


def _model(model_id: str, latest: int, now: datetime) -> dict[str, Any]:
    row = {"project": "default", "id": model_id, "uid": new_ulid(), "latest_version": latest}
    return row | {"create_time": now}


def _version(model_id: str, number: int, dice: random.Random) -> dict[str, Any]:
    name = f"{PROJECT}/models/{model_id}/versions/{number}"
    body = models_pb2.ModelVersion(
        name=name,
        version=number,
        digest=f"{number:064x}",
        stage=models_pb2.ModelStage.ValueType(dice.choice((1, 1, 2, 4))),
        base_model=f"{PROJECT}/baseModels/{dice.choice(_BASES)}",
        metrics={"eval/loss": dice.random() * 3, "exact_match": dice.random()},
    )
    body.create_time.FromDatetime(datetime.now(UTC))
    return {
        "project": "default",
        "model_id": model_id,
        "version": number,
        "stage": body.stage,
        "job": name,
        "body": body.SerializeToString(),
    }


def _card(model_id: str, dice: random.Random) -> dict[str, Any]:
    body = cards_pb2.CardSections(
        summary=" ".join(dice.choices(_WORDS, k=12)),
        intended_use=" ".join(dice.choices(_WORDS, k=20)),
        tags=dice.sample(_WORDS, 3),
        languages=[dice.choice(("de", "en", "fr"))],
        tasks=[dice.choice(_TASKS)],
    )
    return {"project": "default", "model_id": model_id, "etag": "x", "body": body.SerializeToString()}


async def timed(call: Callable[[], Awaitable[Any]], num: int) -> tuple[float, float]:
    """Median and 99th percentile of a call in milliseconds."""
    taken = []
    for _ in range(num):
        began = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - began) * 1000)
    taken.sort()
    return statistics.median(taken), taken[min(len(taken) - 1, int(0.99 * len(taken)))]


def mean(folder: Path, num: int, related_to: str = "", seed: int = 3) -> None:
    """Writes a vector of every model, as if its card had been encoded; close to that of a text when given."""
    engine, dice = create_engine(f"sqlite:///{folder / 'registry.db'}"), np.random.default_rng(seed)
    found = find("")
    assert found is not None, "make setup installs the encoder"
    with Session(engine) as session, session.begin():
        entries = [entry for entry in model_entries(session, "default") if entry.text]
        texts = [Lacking(entry.found.name, entry.text, entry.text_digest) for entry in entries]
        vectors = dice.standard_normal((len(texts), 384)).astype(np.float32)
        encoder = Encoder(found)
        if related_to:
            vectors = (vectors / 20 + encoder.question(related_to)).astype(np.float32)
            encoder.close()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        store(session, "default", encoder.digest, texts, list(vectors))
    assert len(texts) >= num
    engine.dispose()


async def measure(registry: Governed, num: int, repeats: int) -> dict[str, float]:
    """Runs the questions; milliseconds by name."""
    dice, found = random.Random(2), {}

    def ask(**fields: Any) -> Callable[[], Awaitable[Any]]:
        async def call() -> Any:
            words = fields.get("query") or ""
            query = " ".join(dice.choices(_WORDS, k=words)) if isinstance(words, int) else words
            request = search_pb2.SearchModelsRequest(parent=PROJECT, **{**fields, "query": query})
            return await registry.search.SearchModels(request)

        return call

    began = time.perf_counter()
    answer = await ask()()
    found["first question, index read"] = (time.perf_counter() - began) * 1000
    assert answer.total == num + 1, answer.total
    words_only = {"mode": search_pb2.SEARCH_MODE_FULL_TEXT}
    questions: dict[str, dict[str, Any]] = {
        "all models, with facets": {},
        "one word": {"query": 1, **words_only},
        "two words": {"query": 2, **words_only},
        "beginning of a word": {"query": "su", **words_only},
        "filters and a metric": {"languages": ["de"], "tasks": ["chat"], "metrics": ["eval/loss<1"]},
        "ordered by a metric": {"order_by": "metric:eval/loss"},
    }
    for name, fields in questions.items():
        found[f"{name}, p50"], found[f"{name}, p99"] = await timed(ask(page_size=20, **fields), repeats)
    by_meaning = {"query": "a model that helps people", "mode": search_pb2.SEARCH_MODE_MEANING}
    name, call = "by meaning, the question encoded before", ask(page_size=20, **by_meaning)
    await call()
    found[f"{name}, p50"], found[f"{name}, p99"] = await timed(call, repeats)
    name, fresh = "by both ways, the question encoded anew", ask(page_size=20, query=2)
    found[f"{name}, p50"], found[f"{name}, p99"] = await timed(fresh, repeats)
    every = {"kinds": [search_pb2.MODEL_KIND_VERSION], "model": "many", "page_size": 1000}
    _, found["10,000 versions, page of 1,000 with facets, p99"] = await timed(ask(**every), repeats // 4)
    return found


async def run(num: int, repeats: int) -> dict[str, float]:
    """Starts a registry, fills it and measures."""
    with tempfile.TemporaryDirectory() as folder:
        async with governed(Path(folder), encoder="") as registry:
            await asyncio.to_thread(fill, Path(folder), num)
            await asyncio.to_thread(mean, Path(folder), num)
            return await measure(registry, num, repeats)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=200)
    given = parser.parse_args()
    found = asyncio.run(run(given.models, given.repeats))
    for name, value in found.items():
        print(f"{name:55} {value:10.2f} ms")  # noqa: T201
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))  # noqa: T201


if __name__ == "__main__":
    main()
