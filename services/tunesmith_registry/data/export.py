"""A version as a file: JSON lines, CSV or Parquet, in pieces."""

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tunesmith.api.registry.v1 import datasets_pb2 as pb
from tunesmith_kit.blobs import BlobStore
from tunesmith_registry.data import content

_CHUNK = 1024 * 1024
_ROWS = 5000
_TYPES = {
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def pieces(store: BlobStore, version: pb.DatasetVersion, format: str) -> Iterator[pb.ExportDatasetResponse]:
    """The file in pieces; the first says its name and type. Blocks."""
    format = format or "jsonl"
    dataset = version.name.split("/")[3]
    name = f"{dataset}-{version.version}.{format}"
    yield pb.ExportDatasetResponse(content_type=_TYPES[format], file_name=name)
    with content.lines(store, version) as source:
        for data in _content(source, format, _columns(store, version), store.scratch()):
            for start in range(0, len(data), _CHUNK):
                yield pb.ExportDatasetResponse(data=data[start : start + _CHUNK])


def _content(source: BinaryIO, format: str, columns: Sequence[str], scratch: Path) -> Iterator[bytes]:
    if format == "parquet":
        return _parquet(source, columns, scratch)
    return _csv(source, columns) if format == "csv" else iter(lambda: source.read(_CHUNK), b"")


def _columns(store: BlobStore, version: pb.DatasetVersion) -> list[str]:
    if version.columns:
        return list(version.columns)
    first = next(content.rows(store, version), {})  # imported before columns were noted
    return list(first)


def _csv(source: Any, columns: Sequence[str]) -> Iterator[bytes]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([_cell(name) for name in columns])
    for number, line in enumerate(source, 1):
        row = orjson.loads(line)
        writer.writerow([_cell(row.get(name)) for name in columns])
        if number % _ROWS == 0:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def _cell(value: Any) -> str:
    """Text of a cell; an apostrophe before what a spreadsheet would run as a formula."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return orjson.dumps(value).decode() if isinstance(value, list | dict) else str(value)
    return f"'{value}" if value.startswith(_FORMULA) else value


def _parquet(source: Any, columns: Sequence[str], scratch: Path) -> Iterator[bytes]:
    """Parquet is written whole first: its end tells where its parts begin."""
    kinds: dict[str, set[type]] = {name: set() for name in columns}
    for line in source:
        for name, value in orjson.loads(line).items():
            if value is not None and name in kinds:
                kinds[name].add(type(value))
    schema = pa.schema([(name, _type(name, kinds[name])) for name in columns])
    source.seek(0)
    try:
        with pq.ParquetWriter(scratch, schema) as writer:
            while rows := [orjson.loads(line) for line in islice(source, _ROWS)]:
                writer.write_table(_table(rows, schema))
        with scratch.open("rb") as file:
            while data := file.read(_CHUNK):
                yield data
    finally:
        scratch.unlink(missing_ok=True)


def _type(name: str, kinds: set[type]) -> Any:
    """The type all values of a column have; text (JSON, where need be) when they have none in common."""
    if name == "messages":
        return pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    if kinds == {int}:
        return pa.int64()
    if kinds and kinds <= {int, float}:
        return pa.float64()
    return pa.bool_() if kinds == {bool} else pa.string()


def _table(rows: list[dict[str, Any]], schema: Any) -> Any:
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if pa.types.is_string(field.type):
            values = [v if isinstance(v, str) or v is None else orjson.dumps(v).decode() for v in values]
        arrays.append(pa.array(values, field.type))
    return pa.table(arrays, schema=schema)
