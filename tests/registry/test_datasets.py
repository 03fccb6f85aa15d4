"""Datasets: what is accepted, what is refused and how it is said."""

import gzip
import io
import json
from pathlib import Path

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.registry.support import PROJECT, jsonl, refusal, running_registry
from tunesmith.api.registry.v1 import blobs_pb2, datasets_pb2
from tunesmith.errors import AlreadyExists, InvalidArgument, NotFound
from tunesmith_kit.blobs import BlobStore

HELLO = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}

SHAPES = [
    jsonl(HELLO),
    jsonl({"prompt": "hi", "completion": "hello"}),
    jsonl({"instruction": "hi", "output": "hello"}),
    jsonl({"question": "hi", "answer": "hello"}),
    jsonl({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}),
    b"\xef\xbb\xbf" + jsonl({"prompt": "hi", "completion": "hello"}) + b"\n\n",
    b"prompt,completion\nhi,hello\n",
    b"prompt;completion\r\nhi;hello\r\n",
    b"prompt\tcompletion\nhi\thello\n",
    b' [ {"prompt": "hi", "completion": "hello"} ]\n',
    gzip.compress(jsonl({"prompt": "hi", "completion": "hello"})),
    zstandard.compress(b"prompt,completion\nhi,hello\n"),
]


def parquet(**columns: list[str]) -> bytes:
    """A Parquet file of text columns."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


async def test_every_shape_and_format_becomes_the_same_content_and_thus_the_same_version(
    tmp_path: Path,
) -> None:
    async with running_registry(tmp_path) as registry:
        versions = [
            (await registry.import_dataset("greetings", data)).version
            for data in [*SHAPES, parquet(question=["hi"], answer=["hello"])]
        ]
        assert {version.name for version in versions} == {f"{PROJECT}/datasets/greetings/versions/1"}
        assert (versions[0].num_rows, versions[0].row_format) == (1, "messages")
        only = versions[0].manifest.files[0]
        content = BlobStore.open(str(tmp_path / "blobs")).read_bytes(only.sha256)
        assert (only.path, json.loads(content)) == ("data.jsonl", HELLO)


async def test_parquet_columns_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    sink = io.BytesIO()
    times = pa.array([1], pa.timestamp("ns"))  # Python's datetime has no nanoseconds
    pq.write_table(pa.table({"text": ["hello"], "made": times}), sink)
    only_times = io.BytesIO()
    pq.write_table(pa.table({"made": times}), only_times)
    async with running_registry(tmp_path) as registry:
        made = await registry.import_dataset("texts", sink.getvalue())
        assert made.version.num_rows == 1
        assert "made" in str(made.report)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await registry.import_dataset("times", only_times.getvalue())
        assert isinstance(refusal(refused.value), InvalidArgument)


async def test_new_content_makes_a_new_version_and_says_so_once(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        first = await registry.import_dataset("texts", jsonl({"text": "one"}), description="some texts")
        second = await registry.import_dataset("texts", jsonl({"text": "one"}, {"text": "two"}))
        again = await registry.import_dataset("texts", jsonl({"text": "one"}))
        assert (first.version.version, second.version.version, again.version.version) == (1, 2, 1)
        said = await registry.answer("dataset_version_created", 2)
        assert said.dataset_version_created.version.version == 2
        request = datasets_pb2.GetDatasetRequest(name=f"{PROJECT}/datasets/texts")
        dataset = (await registry.datasets.GetDataset(request)).dataset
        assert (dataset.latest.version, dataset.description) == (2, "some texts")
        listed = datasets_pb2.ListDatasetVersionsRequest(parent=dataset.name, page_size=1)
        page = await registry.datasets.ListDatasetVersions(listed)
        assert [version.version for version in page.versions] == [2]
        listed.page_token = page.next_page_token
        page = await registry.datasets.ListDatasetVersions(listed)
        assert ([version.version for version in page.versions], page.next_page_token) == ([1], "")


@pytest.mark.parametrize(
    ("data", "reason", "field", "said"),
    [
        (b"", "DATASET_EMPTY", "source_digest", "no rows"),
        (b"\n \n", "DATASET_EMPTY", "source_digest", "no rows"),
        (b"prompt,completion\n", "DATASET_EMPTY", "source_digest", "no rows"),
        (b'[{"text": "a"}, 7]', "DATASET_ROW_INVALID", "item 2", "no JSON object"),
        (b"\x00\x01\x02", "DATASET_FORMAT_UNKNOWN", "format", "no JSON lines, CSV or Parquet"),
        (b"PAR1 but not really", "DATASET_FORMAT_UNKNOWN", "format", "Parquet"),
        (jsonl({"text": "a"}) + b"{oops\n", "DATASET_ROW_INVALID", "line 2", "is no JSON"),
        (jsonl({"text": "a"}, {"text": 7}), "DATASET_ROW_INVALID", "line 2, text", "must be text"),
        (jsonl({"text": "  "}), "DATASET_ROW_INVALID", "line 1, text", "is empty"),
        (jsonl({"prompt": "a"}), "DATASET_ROW_INVALID", "line 1, completion", "is missing beside prompt"),
        (jsonl({"foo": "a"}), "DATASET_ROW_INVALID", "line 1", "none of the known fields"),
        (jsonl({"text": "a"}, HELLO), "DATASET_ROW_INVALID", "line 2", "row of messages among rows of text"),
        (jsonl({"messages": []}), "DATASET_ROW_INVALID", "line 1, messages", "list of messages"),
        (
            jsonl({"messages": [{"role": "robot", "content": "x"}]}),
            "DATASET_ROW_INVALID",
            "line 1, messages[0].role",
            "no known role",
        ),
        (
            jsonl({"messages": [{"role": "user", "content": "x"}]}),
            "DATASET_ROW_INVALID",
            "line 1, messages",
            "no answer to learn from",
        ),
        (b"prompt,completion\na,b,c\n", "DATASET_ROW_INVALID", "line 2", "more fields"),
        (b"prompt,completion\na\n", "DATASET_ROW_INVALID", "line 2", "fewer fields"),
        (b"prompt,completion\n\xff\xfe,b\n", "DATASET_ROW_INVALID", "line 1", "no UTF-8"),
        (
            b"id,messages\n1," + b"[" * 9000 + b"\n",
            "DATASET_ROW_INVALID",
            "line 2, messages",
            "list of messages",
        ),
        (
            b'id,messages\n1,"[{""role"": ""assistant"", ""content"": ""\\ud800""}]"\n',
            "DATASET_ROW_INVALID",
            "line 2, messages",
            "list of messages",
        ),
        (parquet(question=["hi"]), "DATASET_ROW_INVALID", "row 1, answer", "is missing"),
    ],
)
async def test_bad_files_are_refused_with_place_value_and_remedy(
    tmp_path: Path, data: bytes, reason: str, field: str, said: str
) -> None:
    async with running_registry(tmp_path) as registry:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await registry.import_dataset("bad", data)
        error = refusal(caught.value)
        assert isinstance(error, InvalidArgument)
        assert (error.reason, error.field) == (reason, field)
        assert said in error.message
        assert error.remedy
        listed = await registry.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest(parent=PROJECT))
        assert not listed.datasets


async def test_the_first_twenty_bad_rows_are_named_and_all_are_counted(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await registry.import_dataset("bad", jsonl(*[{"text": index} for index in range(30)]))
        error = refusal(caught.value)
        assert [violation.path for violation in error.violations] == [f"line {n}, text" for n in range(1, 21)]
        assert error.message.startswith("30 of 30 rows cannot be used")


async def test_doubtful_rows_are_kept_and_reported(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b", "id": 1},
        {"prompt": "a", "completion": "b"},
        {"prompt": "c", "completion": " "},
        {"prompt": "d" * 200_000, "completion": "e"},
    ]
    async with running_registry(tmp_path) as registry:
        response = await registry.import_dataset("doubtful", jsonl(*rows))
        assert response.version.num_rows == 4
        found = {(finding.reason, finding.field) for finding in response.report.findings}
        assert found == {
            ("ROW_DUPLICATE", "line 2"),
            ("ANSWER_EMPTY", "line 3"),
            ("ROW_LONG", "line 4"),
            ("COLUMN_UNUSED", ""),
        }
        assert response.report.num_warnings == 4


async def test_a_repeated_request_id_acts_once_and_refuses_another_body(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        first = await registry.import_dataset("once", jsonl({"text": "a"}), request_id="r1")
        again = await registry.import_dataset("once", jsonl({"text": "a"}), request_id="r1")
        assert first.version == again.version
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await registry.import_dataset("once", jsonl({"text": "b"}), request_id="r1")
        assert isinstance(refusal(caught.value), AlreadyExists)


async def test_checking_only_keeps_nothing(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        response = await registry.import_dataset("checked", jsonl({"text": "a"}), validate_only=True)
        assert (response.report.num_rows, response.HasField("version")) == (1, False)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await registry.datasets.GetDataset(
                datasets_pb2.GetDatasetRequest(name=f"{PROJECT}/datasets/checked")
            )
        assert isinstance(refusal(caught.value), NotFound)


async def test_a_mistyped_id_gets_a_hint(tmp_path: Path) -> None:
    async with running_registry(tmp_path) as registry:
        await registry.import_dataset("support-dialogues", jsonl({"text": "a"}))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await registry.datasets.GetDataset(
                datasets_pb2.GetDatasetRequest(name=f"{PROJECT}/datasets/suport-dialogue")
            )
        assert "did you mean support-dialogues?" in refusal(caught.value).remedy


async def test_uploads_are_checked_and_come_back_from_any_offset(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    async with running_registry(tmp_path) as registry:
        digest = await registry.upload(data)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await registry.upload(b"other", sha256=digest)
        assert refusal(caught.value).reason == "DIGEST_MISMATCH"
        stat = await registry.blobs.StatBlob(blobs_pb2.StatBlobRequest(digest=digest))
        assert (stat.exists, stat.size_bytes) == (True, len(data))
        request = blobs_pb2.DownloadBlobRequest(digest=digest, offset=1_000_001)
        came = b"".join([part.chunk async for part in registry.blobs.DownloadBlob(request)])
        assert came == data[1_000_001:]
        assert not list((tmp_path / "blobs" / "tmp").iterdir())
