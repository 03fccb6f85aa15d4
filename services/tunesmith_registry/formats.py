"""Files of rows: JSON lines, CSV and Parquet, read as a stream, each row with its place for messages."""

import csv
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tunesmith.api.registry.v1 import datasets_pb2
from tunesmith.errors import InvalidArgument

JSONL = datasets_pb2.DATASET_FORMAT_JSONL
CSV = datasets_pb2.DATASET_FORMAT_CSV
PARQUET = datasets_pb2.DATASET_FORMAT_PARQUET

_HEAD_BYTES = 64 * 1024
_LONGEST_LINE = 16 * 1024 * 1024
_PARQUET_BATCH = 1000
_BOM = b"\xef\xbb\xbf"
_DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class Row:
    """A row, or what is wrong with it."""

    place: str
    fields: Mapping[str, Any]
    problem: str = ""
    value: str = ""
    remedy: str = ""


def detect(file: BinaryIO) -> "datasets_pb2.DatasetFormat.ValueType":
    """Finds the format out from the first bytes; the file stands at its beginning before and after.

    Raises:
        InvalidArgument: the file is empty, or of no known format.
    """
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        raise empty()
    if head.startswith(b"PAR1"):
        return PARQUET
    if text.startswith(b"{"):
        return JSONL
    if text.startswith(b"["):
        raise _unknown(
            "this is one JSON array", "write one JSON object a line, without the array around them"
        )
    first_line = text.split(b"\n", 1)[0]
    if b"\x00" not in head and any(mark.encode() in first_line for mark in _DELIMITERS):
        return CSV
    if b"\x00" not in head and first_line.strip() in (b"text", b'"text"'):  # CSV of one column
        return CSV
    raise _unknown(
        "the content is no JSON lines, CSV or Parquet",
        "give a .jsonl, .csv or .parquet file; CSV needs a header line",
    )


def empty() -> InvalidArgument:
    """The error for a file without rows."""
    return InvalidArgument(
        "DATASET_EMPTY",
        "the file has no rows",
        field="source_digest",
        remedy="give a file with at least one row",
    )


def _unknown(problem: str, remedy: str) -> InvalidArgument:
    return InvalidArgument("DATASET_FORMAT_UNKNOWN", problem, field="format", remedy=remedy)


def rows(
    file: BinaryIO, format: "datasets_pb2.DatasetFormat.ValueType", known: Container[str]
) -> Iterator[Row]:
    """Yields all rows; a row that cannot be read says why, and reading goes on behind it where it can.

    Of Parquet only the columns named in `known` are read; the others are there, without a value.
    """
    if format == PARQUET:
        return _parquet_rows(file, known)
    return _csv_rows(file) if format == CSV else _jsonl_rows(file)


def _jsonl_rows(file: BinaryIO) -> Iterator[Row]:
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        place = f"line {number}"
        if not line.endswith(b"\n") and len(line) == _LONGEST_LINE:
            yield Row(place, {}, "is longer than 16 MiB", remedy="split the row")
            return
        if number == 1:
            line = line.removeprefix(_BOM)
        if line.strip():
            yield _jsonl_row(place, line)


def _jsonl_row(place: str, line: bytes) -> Row:
    shown = line.decode(errors="replace").strip()[:200]
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Row(place, {}, f"is no JSON: {error}", shown, "write one JSON object a line")
    if not isinstance(fields, dict):
        return Row(
            place,
            {},
            "is no JSON object",
            shown,
            'write an object such as {"prompt": "…", "completion": "…"}',
        )
    return Row(place, fields)


def _csv_rows(file: BinaryIO) -> Iterator[Row]:
    header = file.readline(_HEAD_BYTES)
    file.seek(0)
    delimiter = max(_DELIMITERS, key=lambda mark: header.count(mark.encode()))
    csv.field_size_limit(_LONGEST_LINE)
    reader = csv.DictReader(_text_lines(file), delimiter=delimiter, strict=True)
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError:
            yield Row(place, {}, "is no UTF-8 text", remedy="save the file as UTF-8")
            return
        except csv.Error as error:
            yield Row(place, {}, f"is no CSV: {error}", remedy="quote fields that hold quotes or line ends")
            return
        yield _csv_row(f"line {reader.line_num}", fields)


def _text_lines(file: BinaryIO) -> Iterator[str]:
    encoding = "utf-8-sig"
    while line := file.readline(_LONGEST_LINE):
        yield line.decode(encoding)
        encoding = "utf-8"


def _csv_row(place: str, fields: dict[Any, Any]) -> Row:
    if None in fields:
        extra = delimiter_list(fields[None])
        return Row(
            place, {}, "has more fields than the header", extra, "quote fields that hold the delimiter"
        )
    if None in fields.values():
        missing = ", ".join(key for key, value in fields.items() if value is None)
        return Row(place, {}, "has fewer fields than the header", missing, "fill every column of the header")
    return Row(place, _with_json(fields))


def delimiter_list(values: list[str]) -> str:
    """Values for a message."""
    return ", ".join(values)[:200]


def _with_json(fields: dict[str, str]) -> dict[str, Any]:
    """CSV has text only: a column `messages` holds JSON."""
    text = fields.get("messages", "")
    if not text.lstrip().startswith("["):
        return dict(fields)
    try:
        return {**fields, "messages": orjson.loads(text)}
    except orjson.JSONDecodeError:
        return dict(fields)  # the check of the row says that it is no list


def _parquet_rows(file: BinaryIO, known: Container[str]) -> Iterator[Row]:
    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        wanted = [name for name in names if name in known]
        others = dict.fromkeys(name for name in names if name not in known) if wanted else {}
        number = 0
        for batch in table.iter_batches(batch_size=_PARQUET_BATCH, columns=wanted or None):
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", {**fields, **others})
    # ValueError, OverflowError: times that Python has no value for
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _unknown(f"this is no readable Parquet: {error}", "write the file again") from error
