"""Files of rows: what format they have, and their rows as a stream, each with its place for messages."""

import csv
import gzip
import json
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tunesmith.api.registry.v1 import datasets_pb2
from tunesmith.errors import InvalidArgument

JSONL = datasets_pb2.DATASET_FORMAT_JSONL
CSV = datasets_pb2.DATASET_FORMAT_CSV
PARQUET = datasets_pb2.DATASET_FORMAT_PARQUET
JSON = datasets_pb2.DATASET_FORMAT_JSON
TSV = datasets_pb2.DATASET_FORMAT_TSV
LINES = datasets_pb2.DATASET_FORMAT_TEXT_LINES
PARAGRAPHS = datasets_pb2.DATASET_FORMAT_TEXT_PARAGRAPHS
ARROW = datasets_pb2.DATASET_FORMAT_ARROW
Format = "datasets_pb2.DatasetFormat.ValueType"
SEEKS = (PARQUET, ARROW)  # they are read from several places

LONGEST_LINE = 16 * 1024 * 1024
BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 64 * 1024
_READ = 1024 * 1024
_PARQUET_BATCH = 1000
_DELIMITERS = ",;\t"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_NO_UTF8 = ("ENCODING", "is no UTF-8 text", "save the file as UTF-8")


@dataclass(frozen=True, slots=True)
class Row:
    """A row, or what is wrong with it."""

    place: str
    fields: Mapping[str, Any]
    problem: str = ""
    value: str = ""
    remedy: str = ""
    reason: str = "ROW_UNREADABLE"


def decompressed(file: BinaryIO) -> tuple[BinaryIO, str]:
    """The content of a gzip or Zstandard file and the name of its compression; others as they are."""
    head = file.read(4)
    file.seek(0)
    if head.startswith(_GZIP):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file)), "gzip"
    if head.startswith(_ZSTD):
        return cast(BinaryIO, _Zstd(file)), "zstd"
    return file, ""


class _Zstd:
    """A Zstandard file as a stream with `readline`, frames one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        import io

        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        self._file = io.BufferedReader(cast(Any, reader), _READ)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def detect(head: bytes) -> "datasets_pb2.DatasetFormat.ValueType":
    """Finds the format out from the first bytes (64 KiB) of the decompressed content.

    Raises:
        InvalidArgument: the file is empty, or of no known format.
    """
    text = head.removeprefix(BOM).lstrip()
    if not text:
        raise empty()
    if head.startswith(b"PAR1"):
        return PARQUET
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return ARROW
    if text.startswith(b"{"):
        return JSONL
    if text.startswith(b"["):
        return JSON
    first_line = text.split(b"\n", 1)[0]
    if b"\x00" not in head and any(mark.encode() in first_line for mark in _DELIMITERS):
        return CSV
    if b"\x00" not in head and first_line.strip() in (b"text", b'"text"'):  # CSV of one column
        return CSV
    raise unknown(
        "the content is no JSON lines, CSV or Parquet",
        "give a .jsonl, .json, .csv, .tsv, .parquet or .arrow file; CSV needs a header line; for plain text "
        "say so by the format",
    )


def head_of(file: BinaryIO) -> bytes:
    """The first 64 KiB; the file must be opened anew afterwards when it cannot seek."""
    head = b""
    while len(head) < _HEAD_BYTES and (more := file.read(_HEAD_BYTES - len(head))):
        head += more
    return head


def empty() -> InvalidArgument:
    """The error for a file without rows."""
    return InvalidArgument(
        "DATASET_EMPTY",
        "the file has no rows",
        field="source_digest",
        remedy="give a file with at least one row",
    )


def unknown(problem: str, remedy: str) -> InvalidArgument:
    """The error for a file that cannot be read as rows."""
    return InvalidArgument("DATASET_FORMAT_UNKNOWN", problem, field="format", remedy=remedy)


def rows(
    file: BinaryIO, format: "datasets_pb2.DatasetFormat.ValueType", known: Container[str] | None
) -> Iterator[Row]:
    """Yields all rows; a row that cannot be read says why, and reading goes on behind it where it can.

    Of columnar files only the columns named in `known` are read (None: all); the others are there, without a
    value. JSON lines are read by `blocks.py`.
    """
    if format in SEEKS:
        return _arrow_rows(file, format, known)
    if format in (CSV, TSV):
        return _csv_rows(file, "\t" if format == TSV else "")
    if format == JSON:
        return _json_rows(file)
    return _text_rows(file, format == PARAGRAPHS)


def _csv_rows(file: BinaryIO, delimiter: str) -> Iterator[Row]:
    lines = _TextLines(file)
    delimiter = delimiter or max(_DELIMITERS, key=lines.first.count)
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError:
            reason, problem, remedy = _NO_UTF8
            yield Row(place, {}, problem, remedy=remedy, reason=reason)
            return
        except csv.Error as error:
            yield Row(place, {}, f"is no CSV: {error}", remedy="quote fields that hold quotes or line ends")
            return
        yield _csv_row(f"line {reader.line_num}", fields)


class _TextLines:
    """Lines of text, the first of which can be looked at before."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._next = file.readline(LONGEST_LINE).removeprefix(BOM)
        self.first = self._next.decode(errors="replace")

    def __iter__(self) -> Iterator[str]:
        while self._next:
            yield self._next.decode()
            self._next = self._file.readline(LONGEST_LINE)


def _csv_row(place: str, fields: dict[Any, Any]) -> Row:
    if None in fields:
        extra = ", ".join(fields[None])[:200]
        return Row(
            place, {}, "has more fields than the header", extra, "quote fields that hold the delimiter"
        )
    if None in fields.values():
        missing = ", ".join(key for key, value in fields.items() if value is None)
        return Row(place, {}, "has fewer fields than the header", missing, "fill every column of the header")
    return Row(place, _with_json(fields))


def _with_json(fields: dict[str, str]) -> dict[str, Any]:
    """CSV has text only: columns `messages` and `conversations` hold JSON."""
    found: dict[str, Any] = dict(fields)
    for name in ("messages", "conversations"):
        if fields.get(name, "").lstrip().startswith("["):
            try:
                found[name] = orjson.loads(fields[name])
            except orjson.JSONDecodeError:
                continue  # the check of the row says that it is no list
    return found


def _text_rows(file: BinaryIO, paragraphs: bool) -> Iterator[Row]:
    held: list[str] = []
    size = began = number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        try:
            text = line.removeprefix(BOM if number == 1 else b"").decode().rstrip("\r\n")
        except UnicodeDecodeError:
            reason, problem, remedy = _NO_UTF8
            yield Row(f"line {number}", {}, problem, remedy=remedy, reason=reason)
            continue
        size += len(text)
        if size >= LONGEST_LINE:
            yield Row(f"line {number}", {}, "is longer than 16 MiB", remedy="split it", reason="ROW_TOO_LONG")
            return
        if text.strip():
            began = began or number
            held.append(text)
        if held and not (paragraphs and text.strip()):
            yield Row(f"line {began}", {"text": "\n".join(held)})
            held, size, began = [], 0, 0
    if held:
        yield Row(f"line {began}", {"text": "\n".join(held)})


def no_double(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Hook of `json`: an object whose keys all differ, else `ValueError`."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {double!r} stands twice")
    return found


def no_constant(name: str) -> Any:
    """Hook of `json`: NaN and Infinity are not JSON."""
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=no_double, parse_constant=no_constant)
_NOTHING = re.compile(r"[\s,]*")


def _json_rows(file: BinaryIO) -> Iterator[Row]:
    """Items of one JSON array, item by item; what is no JSON ends the reading, for its end is not known."""
    import codecs

    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    text, at, number, ended = "", 0, 0, False
    try:
        while not ended:
            data = file.read(_READ)
            ended = not data
            text, at = text[at:] + decode(data, ended), 0
            if number == 0 and not at:
                text = text.lstrip().removeprefix("[") if not number and text.lstrip()[:1] == "[" else text
            while True:
                at = cast(re.Match[str], _NOTHING.match(text, at)).end()
                if at >= len(text):
                    break
                if text[at] == "]":
                    return
                try:
                    value, end = _DECODER.raw_decode(text, at)
                except (ValueError, RecursionError) as error:
                    if ended or len(text) - at > LONGEST_LINE or not _cut_off(error, text):
                        yield _bad_item(number + 1, error, text[at : at + 200])
                        return
                    break
                if end == len(text) and not ended and not isinstance(value, dict):
                    break  # a number may go on
                at, number = end, number + 1
                yield _item(number, value)
    except UnicodeDecodeError:
        reason, problem, remedy = _NO_UTF8
        yield Row(f"item {number + 1}", {}, problem, remedy=remedy, reason=reason)


def _cut_off(error: Exception, text: str) -> bool:
    """Whether more text may mend what the decoder says: it stopped near the end of what there is."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.pos >= len(text) - 16 or error.msg.startswith("Unterminated string")


def _bad_item(number: int, error: Exception, found: str) -> Row:
    return Row(f"item {number}", {}, f"is no JSON: {error}"[:300], found, "write one array of objects")


def _item(number: int, value: object) -> Row:
    if isinstance(value, dict):
        return Row(f"item {number}", value)
    remedy = 'write objects such as {"prompt": "…", "completion": "…"}'
    return Row(f"item {number}", {}, "is no JSON object", str(value)[:200], remedy)


def _arrow_rows(
    file: BinaryIO, format: "datasets_pb2.DatasetFormat.ValueType", known: Container[str] | None
) -> Iterator[Row]:
    try:
        names, batches = (_parquet if format == PARQUET else _arrow)(file, known)
        others = dict.fromkeys(name for name in names if known is not None and name not in known)
        number = 0
        for batch in batches():
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", {**fields, **others} if len(fields) < len(names) else fields)
    # ValueError, OverflowError: times that Python has no value for
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        name = "Parquet" if format == PARQUET else "Arrow"
        raise unknown(f"this is no readable {name}: {error}"[:500], "write the file again") from error


Batches = Callable[[], Iterator[Any]]


def _parquet(file: BinaryIO, known: Container[str] | None) -> tuple[list[str], Batches]:
    table = pq.ParquetFile(file)
    names = table.schema_arrow.names
    wanted = [name for name in names if known is None or name in known] or None
    return names, lambda: table.iter_batches(batch_size=_PARQUET_BATCH, columns=wanted)


def _arrow(file: BinaryIO, known: Container[str] | None) -> tuple[list[str], Batches]:
    stream = file.read(6) != b"ARROW1"
    file.seek(0)
    reader: Any = pa.ipc.open_stream(file) if stream else pa.ipc.open_file(file)
    names = reader.schema.names
    wanted = [name for name in names if known is None or name in known] or names

    def batches() -> Iterator[Any]:
        whole = reader if stream else (reader.get_batch(index) for index in range(reader.num_record_batches))
        for batch in whole:
            for start in range(0, batch.num_rows, _PARQUET_BATCH):
                yield batch.select(wanted).slice(start, _PARQUET_BATCH)

    return names, batches
