"""What is in a version, counted; and its rows as training sees them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.registry.data import Data, running_data, template
from tests.registry.support import PROJECT, jsonl
from tests.support.platform import tiny_model
from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.registry.v1 import datasets_pb2, models_pb2, prompts_pb2

LONG = "the quick brown fox jumps over the lazy dog and the people of the city talk about the weather " * 3


def chat(question: str, answer: str) -> dict[str, Any]:
    """A conversation of two turns."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [
    chat("what is the capital of France and how are you?", "the capital of France is Paris."),
    chat(LONG + "one", "yes"),
    chat(LONG + "two", "yes"),
    chat(LONG + "one", "yes"),
    chat("Was ist die Hauptstadt von Frankreich und wie geht es dir?", "Paris ist die Hauptstadt."),
    chat("首都はどこですか", "パリです"),
    chat("odd \u200b\u202e characters", ""),
]


async def _import_tiny(data: Data) -> None:
    files = []
    for path in sorted(tiny_model().iterdir()):
        if path.name != "manifest.json":
            content = path.read_bytes()
            digest = await data.upload(content)
            files.append(common_pb2.ManifestFile(path=path.name, size_bytes=len(content), sha256=digest))
    request = models_pb2.ImportBaseModelRequest(parent=PROJECT, base_model_id="tiny", files=files)
    await data.models.ImportBaseModel(request)


def shares(listed: Any) -> Mapping[str, int]:
    """Names and counts."""
    return {each.name: each.count for each in listed}


async def test_rows_are_counted_without_a_tokenizer_and_once(tmp_path: Path) -> None:
    async with running_data(tmp_path) as data:
        version = await data.imported("chat", jsonl(*ROWS))
        evaluation = await data.imported("evaluation", jsonl(ROWS[0], chat("something else", "entirely")))
        found = await data.stats(version.name, overlap_with=["evaluation"])
        assert (found.num_rows, found.num_exact_duplicates, found.num_near_duplicates) == (7, 1, 1)
        assert {(pair.row, pair.like_row) for pair in found.duplicates} == {(3, 2), (4, 2)}
        assert shares(found.roles) == {"user": 7, "assistant": 7}
        languages = shares(found.languages)
        assert (languages["de"], languages["ja"]) == (1, 1)
        assert languages["en"] >= 4
        assert shares(found.suspicious) == {"bidi": 1, "zero_width": 1}
        assert found.num_empty_answers == 1
        assert sum(found.characters.counts) == 7
        overlap = found.overlaps[0]
        assert (overlap.dataset_version, overlap.num_rows, overlap.share) == (evaluation.name, 1, 0.5)
        assert overlap.examples[0].row == 1
        assert not found.HasField("tokens")
        again = await data.stats(version.name, overlap_with=["evaluation"])
        assert again == found, "kept, not computed anew"
        labels = await data.imported("labels", b"text,label\na,x\nb,x\nc,y\nd,y\n")
        balanced = await data.stats(labels.name)
        assert shares(balanced.labels) == {"x": 2, "y": 2}
        assert balanced.label_balance == pytest.approx(1)


async def test_tokens_and_what_is_learnt_are_those_of_training(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from tunesmith_trainer.chat import ChatFormat
    from tunesmith_trainer.data import Row
    from tunesmith_trainer.recipe.sft import tokenize

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model())
    chats, lengths, trained = ChatFormat(tokenizer), [], []
    for row in ROWS:
        example = tokenize(Row(0, tuple(row["messages"]), ""), chats, tokenizer, 64)
        trained.append(example.weight if example else 0)
        lengths.append(len(tokenizer(chats.render(Row(0, tuple(row["messages"]), "")).text)["input_ids"]))
    async with running_data(tmp_path) as data:
        await _import_tiny(data)
        version = await data.imported("chat", jsonl(*ROWS))
        found = (await data.stats(version.name, base_model="tiny", max_length=64)).tokens
        assert found.num_tokens == sum(lengths)
        assert found.num_trained_tokens == sum(trained)
        assert found.num_truncated == sum(length > 64 for length in lengths)
        assert found.num_without_labels == trained.count(0)
        request = datasets_pb2.ListDatasetRowsRequest(
            parent=version.name, base_model="tiny", max_length=64, page_size=2
        )
        page = await data.datasets.ListDatasetRows(request)
        assert [row.row for row in page.rows] == [1, 2]
        assert not page.not_rendered
        first, second = page.rows
        learnt = "".join(part.text for part in first.segments if part.trained)
        assert learnt == "the capital of France is Paris.<|im_end|>"
        assert first.segments[0].text.endswith("assistant\n")
        assert (second.truncated, second.num_trained_tokens) == (True, 0)
        request.page_token = page.next_page_token
        assert [row.row for row in (await data.datasets.ListDatasetRows(request)).rows] == [3, 4]
        search = datasets_pb2.ListDatasetRowsRequest(parent=version.name, contains="HAUPTSTADT")
        assert [row.row for row in (await data.datasets.ListDatasetRows(search)).rows] == [5]
        records = await data.imported("mails", jsonl({"mail": "hi", "kind": "ham"}), row_format="record")
        made = prompts_pb2.CreatePromptTemplateRequest(
            parent=PROJECT, prompt_id="sort", parts=template(prompt="{{ mail }}", completion="{{ kind }}")
        )
        await data.prompts.CreatePromptTemplate(made)
        request = datasets_pb2.ListDatasetRowsRequest(parent=records.name, base_model="tiny")
        assert "template" in (await data.datasets.ListDatasetRows(request)).rows[0].error
        request.prompt_template = "sort@1"
        shown = (await data.datasets.ListDatasetRows(request)).rows[0]
        assert [part.text for part in shown.segments if part.trained] == ["ham<|im_end|>"]
