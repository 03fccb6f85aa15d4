"""Imports: formats, shapes, sources, progress; and every bad file of the list, each with its answer."""

import gzip
import http.server
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.registry.data import running_data
from tests.registry.support import jsonl
from tests.support.wait import until
from tunesmith.api.registry.v1 import datasets_pb2 as pb

HELLO = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def parquet(table: object) -> bytes:
    """A Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def arrow(table: pa.Table, stream: bool) -> bytes:
    """An Arrow file or stream."""
    sink = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


async def test_every_shape_is_detected_shown_and_kept_in_one_form(tmp_path: Path) -> None:
    pair = {"prompt": "hi", "chosen": "hello", "rejected": "go away"}
    ask = {"role": "user", "content": "hi"}
    chats = {name: [ask, {"role": "assistant", "content": pair[name]}] for name in ("chosen", "rejected")}
    table = pa.table({"text": ["a", "b"]})
    async with running_data(tmp_path) as data:

        async def same(dataset_id: str, shape: str, *files: bytes, **fields: object) -> None:
            made = [await data.imported(dataset_id, file, **fields) for file in files]
            assert {each.name for each in made} == {made[0].name}, dataset_id
            assert made[0].row_format == shape

        await same("pairs", "preference", jsonl(pair), jsonl(chats), jsonl({**chats, "prompt": [ask]}))
        labelled = (
            b"text,label\na,1\n",
            jsonl({"text": "a", "label": 1}),
            jsonl({"text": "a", "label": "1"}),
        )
        await same("labels", "classification", *labelled)
        await same(
            "texts", "text", jsonl({"text": "a"}, {"text": "b"}), arrow(table, True), arrow(table, False)
        )
        lines = {"format": pb.DATASET_FORMAT_TEXT_LINES}
        await same("texts", "text", b"a\r\n\nb", gzip.compress(b"a\nb\n"), **lines)
        await same("texts", "text", b"a\n\n\nb\n", format=pb.DATASET_FORMAT_TEXT_PARAGRAPHS)
        mapped = {"mapping": {"prompt": "frage", "completion": "antwort"}}
        await same("mapped", "messages", jsonl({"prompt": "hi", "completion": "hello"}))
        await same("mapped", "messages", b"frage;antwort\nhi;hello\n", **mapped)
        record = {"a": 1, "b": {"c": [True, None]}, "d": "x"}
        version = await data.imported("records", jsonl(record), row_format="record")
        assert (version.row_format, list(version.columns)) == ("record", ["a", "b", "d"])
        assert json.loads(await data.content(version)) == record
        request = data.request("check", source_digest=await data.upload(gzip.compress(jsonl(HELLO))))
        request.validate_only = True
        report = (await data.datasets.ImportDataset(request)).report
        assert report.detected == "jsonl, gzip: messages"


async def test_bad_files_are_refused_with_reason_place_and_remedy(tmp_path: Path) -> None:
    deep = b'{"text": "a", "b": ' + b"[" * 5000 + b"]" * 5000 + b"}\n"
    nested = {"a": [[[1]]]}
    for _ in range(70):
        nested = {"a": nested}  # type: ignore[dict-item]
    pickled = parquet(pa.table({"a": pa.array([b"\x80\x04."], pa.binary())}))
    numbers = parquet(pa.table({"a": [1.0, float("nan"), float("inf")]}))
    labelled: dict[str, object] = {"row_format": "classification"}
    record: dict[str, object] = {"row_format": "record"}
    mapped: dict[str, object] = {"mapping": {"prompt": "frage", "completion": "antwort"}}
    cases: list[tuple[bytes, str, str, dict[str, object]]] = [
        (b"", "DATASET_EMPTY", "source_digest", {}),
        (gzip.compress(b""), "DATASET_EMPTY", "source_digest", {}),
        (gzip.compress(jsonl(HELLO) * 3000)[:-20], "DATASET_FORMAT_UNKNOWN", "format", {}),
        (b"\x28\xb5\x2f\xfd" + b"x" * 50, "DATASET_FORMAT_UNKNOWN", "format", {}),
        (jsonl(HELLO) + b'{"text": "a', "ROW_UNREADABLE", "line 2", {}),
        (jsonl(HELLO) + b'{"messages": "\xff"}\n', "ENCODING", "line 2", {}),
        (b'{"text": "a", "text": "b"}\n', "KEY_TWICE", "line 1", {}),
        (b'{"text": NaN}\n', "ROW_UNREADABLE", "line 1", {}),
        (deep, "ROW_UNREADABLE", "line 1", {}),
        (jsonl(nested), "ROW_TOO_DEEP", "line 1", record),
        (b'{"text": "' + b"x" * (17 << 20) + b'"}\n' + jsonl(HELLO), "ROW_TOO_LONG", "line 1", {}),
        (jsonl(HELLO, {"text": "a"}), "SHAPE_MIXED", "line 2", {}),
        (jsonl({"messages": [{"role": ["user"], "content": "x"}]}), "ROLE_UNKNOWN", "messages[0].role", {}),
        (b'[{"text": "a"}, {"text": ]', "ROW_UNREADABLE", "item 2", {}),
        (b'[{"text": "a", "text": "b"}]', "ROW_UNREADABLE", "item 1", {}),
        (pickled, "FIELD_TYPE", "row 1, a", record),
        (numbers, "NUMBER_NOT_FINITE", "row 2, a", record),
        (parquet(pa.table({"b": [1]}))[:-9], "DATASET_FORMAT_UNKNOWN", "format", {}),
        (b"ARROW1\x00\x00 not really", "DATASET_FORMAT_UNKNOWN", "format", {}),
        (jsonl({"prompt": "a", "chosen": "b", "rejected": "b"}), "PAIR_SAME", "rejected", {}),
        (jsonl({"text": "a", "label": {}}), "FIELD_TYPE", "label", {}),
        (jsonl({"frage": "a"}), "FIELD_MISSING", "antwort", mapped),
        (jsonl({"text": "a"}), "FIELD_MISSING", "label", labelled),
        (jsonl({"a": None}), "ROW_EMPTY", "line 1", record),
        (b"\xff\xfe\n", "ENCODING", "line 1", {"format": pb.DATASET_FORMAT_TEXT_LINES}),
    ]  # fmt: skip
    async with running_data(tmp_path) as data:
        for content, reason, place, fields in cases:
            error = await data.refused("bad", content, **fields)
            found = f"{error.reason} {error.message}"
            assert reason in found, (content[:60], found)
            assert place in error.field or place in error.message, (place, error.field, error.message)
            assert error.remedy
        assert not (
            await data.datasets.ListDatasets(pb.ListDatasetsRequest(parent="projects/default"))
        ).datasets
        assert not list((tmp_path / "blobs" / "tmp").iterdir())


async def test_doubtful_rows_are_counted_by_reason_over_many_blocks(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{n} " + "x" * 300}, *HELLO["messages"][1:]]}
        for n in range(60_000)
    ]
    rows[50_000], rows[59_999] = rows[7], rows[7]
    rows[40_000] = {"messages": [{"role": "user", "content": "\x00"}, {"role": "assistant", "content": ""}]}
    content = jsonl(*rows)
    assert len(content) > 16 << 20, "large enough for processes of their own"
    async with running_data(tmp_path) as data:
        request = data.request("many", source_digest=await data.upload(content))
        messages = [
            each async for each in data.datasets.RunImport(pb.RunImportRequest(import_request=request))
        ]
        told = messages[-1]
        assert (told.progress.phase, told.progress.num_rows) == ("done", 60_000)
        assert told.progress.num_bytes == told.progress.total_bytes == len(content)
        counts = {each.reason: each.count for each in told.result.report.counts}
        assert counts == {"ROW_DUPLICATE": 2, "ANSWER_EMPTY": 1, "TEXT_DAMAGED": 1}
        same = [each.message for each in told.result.report.findings if each.reason == "ROW_DUPLICATE"]
        assert same == ["same as line 8", "same as line 8"]
        stored = await data.content(told.result.version)
        assert [json.loads(line) for line in stored.splitlines()] == rows, "no row is lost or out of place"
        bad = data.request("bad", source_digest=await data.upload(content + b"{}\n"), validate_only=True)
        *_, last = [each async for each in data.datasets.RunImport(pb.RunImportRequest(import_request=bad))]
        assert last.result.report.num_errors == 1
        assert last.result.report.findings[0].field == "line 60001"
        assert not last.result.HasField("version")


async def test_an_import_whose_client_goes_away_ends_and_leaves_nothing(tmp_path: Path) -> None:
    content = jsonl(*[{"text": f"{n} " + "x" * 500} for n in range(60_000)])
    async with running_data(tmp_path) as data:
        request = data.request("gone", source_digest=await data.upload(content))
        call = data.datasets.RunImport(pb.RunImportRequest(import_request=request))
        await call.read()
        call.cancel()
        scratch = tmp_path / "blobs" / "tmp"
        await until(lambda: not list(scratch.iterdir()), "the import ends")
        assert not (
            await data.datasets.ListDatasets(pb.ListDatasetsRequest(parent="projects/default"))
        ).datasets


async def test_shared_folders_are_read_and_never_left(tmp_path: Path) -> None:
    shared, secret = tmp_path / "shared", tmp_path / "secret.jsonl"
    saved = shared / "saved" / "train"
    saved.mkdir(parents=True)
    secret.write_bytes(jsonl(HELLO))
    (shared / "good.jsonl").write_bytes(jsonl(HELLO))
    (shared / "link.jsonl").symlink_to(secret)
    (shared / "loop").symlink_to(shared / "loop")
    (shared / "saved" / "dataset_dict.json").write_text("{}")
    for part, text in enumerate("ab"):
        table = pa.table({"text": [text]})
        (saved / f"data-0000{part}-of-00002.arrow").write_bytes(arrow(table, True))
    (saved / "state.json").write_text("{}")
    async with running_data(tmp_path, import_roots=str(shared)) as data:
        version = (await data.datasets.ImportDataset(data.request("good", path="good.jsonl"))).version
        assert (version.num_rows, version.source) == (1, "good.jsonl")
        folder = (await data.datasets.ImportDataset(data.request("folder", path="saved"))).version
        assert await data.content(folder) == b'{"text":"a"}\n{"text":"b"}\n'
        whole = (
            await data.datasets.ImportDataset(data.request("good", path=str(shared / "good.jsonl")))
        ).version
        assert whole.name == version.name
        for path in (
            "../secret.jsonl",
            "link.jsonl",
            str(secret),
            "/etc/passwd",
            "a/../../secret.jsonl",
            "..\\x",
            "x\0",
        ):
            error = await data.refused("bad", path=path)
            assert error.reason in ("PATH_OUTSIDE", "FIELD_INVALID"), path
        for path in ("nothing.jsonl", "~root/x", "file:///etc/passwd", "loop", "%2e%2e/secret.jsonl"):
            assert (await data.refused("bad", path=path)).reason == "SOURCE_NOT_FOUND", path
        assert (await data.refused("bad", path="x", url="http://y")).reason == "SOURCE_AMBIGUOUS"
        assert (await data.refused("bad")).reason == "SOURCE_MISSING"


@contextmanager
def web(pages: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """A small web server; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = pages.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


async def test_only_listed_addresses_are_fetched_and_no_redirect_leads_elsewhere(tmp_path: Path) -> None:
    pages: dict[str, tuple[int, dict[str, str], bytes]] = {
        "/open/a.jsonl": (200, {}, jsonl(HELLO)),
        "/open/moved": (302, {"location": "/open/a.jsonl"}, b""),
        "/open/away": (302, {"location": "http://169.254.169.254/latest"}, b""),
        "/open/inner": (302, {"location": "/closed"}, b""),
        "/open/round": (302, {"location": "/open/round"}, b""),
        "/open/short": (200, {"content-length": "999"}, b"{}"),
        "/open/large": (200, {}, b"x" * 200_000),
        "/closed": (200, {}, jsonl(HELLO)),
    }
    with web(pages) as base:
        port = base.rpartition(":")[2]
        allowed = f"{base}/open,localhost"
        async with running_data(tmp_path, import_urls=allowed, import_max_bytes=100_000) as data:
            for path in ("/open/a.jsonl", "/open/moved"):
                made = (await data.datasets.ImportDataset(data.request("web", url=base + path))).version
                assert made.num_rows == 1
            refused = (
                base + "/closed", base + "/open/away", base + "/open/inner", base + "/open/../closed",
                base + "/open/%2e%2e/closed", "http://169.254.169.254/x", "file:///etc/passwd", "gopher://x/",
                f"http://localhost:{port}/open/a.jsonl", f"http://user@127.0.0.1:{port}/open/a.jsonl", "http://[",
                f"http://127.0.0.1:{port}@169.254.169.254/open/x", base + "/open/a b",
            )  # fmt: skip
            for url in refused:
                assert (await data.refused("bad", url=url)).reason == "URL_REFUSED", url
            for path in ("/open/round", "/open/short", "/open/none"):
                assert (await data.refused("bad", url=base + path)).reason == "SOURCE_UNAVAILABLE", path
            assert (await data.refused("bad", url=base + "/open/large")).reason == "DATASET_TOO_LARGE"
            bomb = gzip.compress(b'{"text": "' + b"x" * 300_000 + b'"}\n')
            assert (await data.refused("bad", bomb)).reason == "DATASET_TOO_LARGE"
            assert not list((tmp_path / "blobs" / "tmp").iterdir())


async def test_parquet_files_of_a_hub_are_read_and_nothing_else(tmp_path: Path) -> None:
    rows = parquet(pa.table({"text": ["a", "b"]}))
    tree = [
        {"type": "file", "path": "data/train-0.parquet", "size": len(rows), "oid": "a" * 40},
        {"type": "file", "path": "data/test-0.parquet", "size": len(rows), "oid": "b" * 40},
        {"type": "file", "path": "evil.py", "size": 3, "oid": "c" * 40},
    ]
    sent = {"x-repo-commit": "1" * 40, "etag": '"abc"', "content-type": "application/octet-stream"}
    listing = (200, {"content-type": "application/json"}, json.dumps(tree).encode())
    pages = {
        "/api/datasets/me/rows/tree/main?recursive=true&expand=false": listing,
        "/api/datasets/me/rows/tree/main?recursive=True&expand=False": listing,
        "/datasets/me/rows/resolve/main/data/train-0.parquet": (200, sent, rows),
    }
    with web(pages) as base:
        async with running_data(tmp_path, hub_url=base) as data:
            hub = pb.HubSource(repo="me/rows")
            version = (await data.datasets.ImportDataset(data.request("hub", hub=hub))).version
            assert (version.num_rows, version.source) == (2, "me/rows@main")
            error = await data.refused("bad", hub=pb.HubSource(repo="me/rows", files="*.py"))
            assert error.reason == "SOURCE_AMBIGUOUS"
            assert (await data.refused("bad", hub=pb.HubSource(repo="../x"))).reason == "FIELD_INVALID"
            assert not list((tmp_path / "blobs" / "tmp").iterdir())


async def test_versions_follow_each_other_and_are_exported_safely(tmp_path: Path) -> None:
    formula = {"text": "=cmd|'/c calc'!A0", "label": "-1"}
    async with running_data(tmp_path) as data:
        first = await data.imported("rows", jsonl({"text": "plain", "label": "a"}))
        second = await data.imported("rows", jsonl(formula))
        assert (first.parent, second.parent) == ("", first.name)
        made = {}
        for format in ("jsonl", "csv", "parquet"):
            request = pb.ExportDatasetRequest(name=second.name, format=format)
            pieces = [piece async for piece in data.datasets.ExportDataset(request)]
            assert pieces[0].file_name == f"rows-2.{format}"
            made[format] = b"".join(piece.data for piece in pieces)
        assert made["csv"] == b"text,label\r\n'=cmd|'/c calc'!A0,'-1\r\n"
        assert pq.read_table(io.BytesIO(made["parquet"])).to_pylist() == [formula]
        again = await data.imported("rows", made["parquet"])
        assert again.name == second.name
