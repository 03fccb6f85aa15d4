"""Versions made of versions: each row where it belongs, the same again, and how it was made."""

import json
from pathlib import Path

import grpc
import pytest

from tests.registry.data import Data, running_data
from tests.registry.support import jsonl
from tunesmith.api.registry.v1 import derivations_pb2 as pb
from tunesmith.errors import TunesmithError
from tunesmith.status import from_rpc_error

ROWS = [{"text": f"row {n}", "label": "even" if n % 2 == 0 else "odd"} for n in range(1000)]


async def _fails(call: object) -> TunesmithError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value)


async def _rows(data: Data, version: object) -> list[dict[str, str]]:
    return [json.loads(line) for line in (await data.content(version)).splitlines()]  # type: ignore[arg-type]


async def test_a_split_deals_each_row_once_and_keeps_equal_rows_together(tmp_path: Path) -> None:
    async with running_data(tmp_path) as data:
        await data.imported("all", jsonl(*ROWS, *ROWS[:100]))
        parts = [pb.SplitPart(dataset_id="train", weight=9), pb.SplitPart(dataset_id="held-out", weight=1)]
        split = pb.SplitOperation(dataset="all@1", parts=parts, seed=7)
        train, held_out = await data.derive(split=split)
        found = [await _rows(data, train), await _rows(data, held_out)]
        assert sorted(row["text"] for part in found for row in part) == sorted(
            row["text"] for row in [*ROWS, *ROWS[:100]]
        )
        texts = [{row["text"] for row in part} for part in found]
        assert not texts[0] & texts[1], "no row of one part is in the other"
        assert 60 < held_out.num_rows < 160
        assert train.derivation.operation == "split"
        assert train.derivation.inputs[0].version.endswith("datasets/all/versions/1")
        assert json.loads(train.derivation.parameters)["seed"] == 7
        again = await data.derive(split=split)
        assert [each.digest for each in again] == [train.digest, held_out.digest]
        split.seed = 8
        other = await data.derive(split=split)
        assert other[0].digest != train.digest
        assert (other[0].version, other[0].parent) == (2, train.name)
        split.group_by = "label"
        split.seed = 0
        for seed in range(20):
            split.seed = seed
            try:
                grouped = await data.derive(split=split)
            except grpc.aio.AioRpcError:  # both groups fell into one part
                continue
            labels = [{row["label"] for row in await _rows(data, each)} for each in grouped]
            assert not labels[0] & labels[1]
            break
        else:
            raise AssertionError("both groups fell into one part twenty times")


async def test_filters_keep_what_they_say(tmp_path: Path) -> None:
    chats = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (("hello there", "hi"), ("SORRY?", "no"), ("x" * 50, "Sorry, no"))
    ]
    cases = {
        'label = "even"': 500,
        "label in ('odd', 'none') and not text ~ \"row [0-4]\\d*$\"": 278,
        "length(text) <= 5 or text = 'row 999'": 11,
        '(label != "even" or text = "row 0") and words(text) = 2': 501,
        'lower(label) = "odd" and text > "row 998"': 1,
        "`label` ~ '^e'": 500,
    }
    async with running_data(tmp_path) as data:
        await data.imported("all", jsonl(*ROWS))
        await data.imported("chats", jsonl(*chats))
        for expression, count in cases.items():
            keep = eval_rows(expression)
            operation = pb.FilterOperation(dataset="all", dataset_id="kept", expression=expression)
            (version,) = await data.derive(filter=operation)
            assert version.num_rows == (keep if keep is not None else count), expression
        operation = pb.FilterOperation(
            dataset="chats", dataset_id="short",
            expression='length(prompt) < 20 and not completion ~ "(?i)sorry" and turns = 2',
        )  # fmt: skip
        assert (await data.derive(filter=operation))[0].num_rows == 2
        for bad, reason in {
            'label = "none"': "DATASET_EMPTY",
            "labl = 1": "COLUMN_UNKNOWN",
            "label = ": "EXPRESSION_INVALID",
            "label ~ '('": "EXPRESSION_INVALID",
            "__import__('os')": "EXPRESSION_INVALID",
            "(" * 200 + "label": "EXPRESSION_INVALID",
            "label = 'a' 'b'": "EXPRESSION_INVALID",
            "\x00": "EXPRESSION_INVALID",
        }.items():
            wrong = pb.FilterOperation(dataset="all", dataset_id="bad", expression=bad)
            error = await _fails(data.derive(filter=wrong))
            assert (error.reason, bool(error.remedy)) == (reason, True), (bad, error)


def eval_rows(expression: str) -> int | None:
    """The count by Python's own rules where that is easy to say."""
    if "row [0-4]" in expression:
        return sum(row["label"] == "odd" and row["text"][4] not in "01234" for row in ROWS)
    if expression.startswith("length"):
        return sum(len(row["text"]) <= 5 or row["text"] == "row 999" for row in ROWS)
    return None


async def test_samples_and_mixes_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    async with running_data(tmp_path) as data:
        await data.imported("all", jsonl(*ROWS))
        await data.imported("few", jsonl(*[{"text": f"few {n}", "label": "few"} for n in range(10)]))
        await data.imported("texts", jsonl({"text": "plain"}))
        sample = pb.SampleOperation(dataset="all", dataset_id="some", num_rows=100, seed=3)
        (some,) = await data.derive(sample=sample)
        rows = await _rows(data, some)
        assert len({row["text"] for row in rows}) == 100
        numbers = [int(row["text"].split()[1]) for row in rows]
        assert numbers == sorted(numbers), "in their order"
        assert (await data.derive(sample=sample))[0].name == some.name
        parts = [pb.MixPart(dataset="all", weight=3), pb.MixPart(dataset="few", weight=1)]
        (mixed,) = await data.derive(mix=pb.MixOperation(parts=parts, dataset_id="blend", seed=1))
        assert mixed.num_rows == 40, "no row of the smaller twice"
        larger = pb.MixOperation(parts=parts, dataset_id="blend", num_rows=100, seed=1)
        (more,) = await data.derive(mix=larger)
        found = await _rows(data, more)
        assert sum(row["label"] == "few" for row in found) == 25
        assert found[:10] != sorted(found[:10], key=lambda row: row["text"]), "shuffled"
        assert [each.version.split("/")[3] for each in more.derivation.inputs] == ["all", "few"]
        parts.append(pb.MixPart(dataset="texts", weight=1))
        error = await _fails(data.derive(mix=pb.MixOperation(parts=parts, dataset_id="bad")))
        assert error.reason == "SHAPE_MIXED"
        assert (await _fails(data.derive())).reason == "FIELD_INVALID"
        twice = [pb.SplitPart(dataset_id="x", weight=1)] * 2
        error = await _fails(data.derive(split=pb.SplitOperation(dataset="all", parts=twice)))
        assert error.reason == "FIELD_INVALID"
