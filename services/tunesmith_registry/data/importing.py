"""An import: a source is read as a stream, every row checked, and the canonical form stored."""

import asyncio
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import zstandard

from tunesmith.api.registry.v1 import datasets_pb2
from tunesmith.errors import InvalidArgument, ResourceExhausted
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore, BlobWriter
from tunesmith_kit.manifest import Manifest, ManifestFile
from tunesmith_registry.data import blocks, formats
from tunesmith_registry.data.checking import Checked, Checker, Rules
from tunesmith_registry.data.duplicates import exact
from tunesmith_registry.data.findings import Finding, Findings
from tunesmith_registry.data.rows import KNOWN, RECORD
from tunesmith_registry.data.sources import Opened, Source
from tunesmith_registry.data.workers import Worker

DATA = "data.jsonl"
# Below this a worker's start (0.1 s) costs more than it saves.
_WORTH_WORKERS = 16 * 1024 * 1024
_CHUNK_ROWS = 2000
_WORDS: Mapping[int, str] = {
    formats.JSONL: "line", formats.CSV: "line", formats.TSV: "line", formats.LINES: "line",
    formats.PARAGRAPHS: "line", formats.JSON: "item", formats.PARQUET: "row", formats.ARROW: "row",
}  # fmt: skip


@dataclass
class Import:
    """A checked file, stored in its canonical form."""

    manifest: Manifest
    digest: str
    num_rows: int
    size_bytes: int
    row_format: str
    report: datasets_pb2.ValidationReport
    columns: list[str]
    source_format: int
    findings: Findings


@dataclass
class Progress:
    """How far an import has come; read by other threads while it runs. `cancelled` ends it."""

    phase: str = "fetching"
    num_bytes: int = 0
    total_bytes: int = 0
    num_rows: int = 0
    num_errors: int = 0
    num_warnings: int = 0
    cancelled: bool = False

    def proto(self) -> datasets_pb2.ImportProgress:
        """The same as a message."""
        return datasets_pb2.ImportProgress(
            phase=self.phase,
            num_bytes=self.num_bytes,
            total_bytes=self.total_bytes,
            num_rows=self.num_rows,
            num_errors=self.num_errors,
            num_warnings=self.num_warnings,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What an import may use: bytes after decompression, and processes that check beside this one."""

    max_bytes: int = 1 << 40
    num_workers: int = 2


@dataclass
class _Intake:
    """Takes what was checked, in the order of the rows: writes it, and keeps what was found."""

    writer: BlobWriter
    progress: Progress
    findings: Findings = field(default_factory=Findings)
    rows: Checked = field(default_factory=Checked)
    num_rows: int = 0

    def take(self, part: Checked) -> None:
        if self.progress.cancelled:
            raise asyncio.CancelledError
        self._same_format(part)
        if not self.findings.errors:
            self.writer.write(part.text)
        self.num_rows += len(part.marks)
        self.rows.num_read += part.num_read
        self.rows.marks.extend(part.marks)
        self.rows.places.extend(part.places)
        self.rows.unused |= part.unused
        known = set(self.rows.columns)
        self.rows.columns += [name for name in part.columns if name not in known][: 200 - len(known)]
        self.findings.merge(
            (Finding(*item) for item in part.found),
            ((reason, error, count) for (reason, error), count in part.counts.items()),
        )
        self.progress.num_rows = self.rows.num_read
        self.progress.num_errors, self.progress.num_warnings = (
            self.findings.num(True),
            self.findings.num(False),
        )

    def _same_format(self, part: Checked) -> None:
        self.rows.row_format = self.rows.row_format or part.row_format
        assert part.row_format in ("", self.rows.row_format), "blocks after the first are told the format"


def read(
    store: BlobStore,
    source: Source,
    request: datasets_pb2.ImportDatasetRequest,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Import:
    """Checks a source and stores its canonical form. Blocks.

    Raises:
        InvalidArgument: the format is not known, there are no rows, or (unless the request says
            `validate_only`) rows cannot be used.
        ResourceExhausted: the disk is full, or the source is larger than it may be.
    """
    progress, limits = progress or Progress(), limits or Limits()
    progress.phase, progress.total_bytes = "checking", sum(file.size_bytes for file in source.files)
    rules = Rules(dict(request.mapping), request.row_format)
    writer = store.writer()
    try:
        intake = _Intake(writer, progress)
        found, packed = 0, ""
        for opened in source.files:
            with ExitStack() as closing:
                found, packed = _take_file(store, opened, request, rules, intake, limits, closing)
        _finish(intake, request.validate_only, _WORDS[found])
        detected = _detected(found, packed, intake.rows)
        report = intake.findings.report(intake.rows.num_read, detected)
        progress.phase = "storing"
        if intake.findings.errors:
            return Import(
                Manifest("dataset", ()), "", 0, 0, intake.rows.row_format, report, [], found, intake.findings
            )
        blob = writer.commit()
    finally:
        writer.abort()
    row_format = intake.rows.row_format
    properties = {"num_rows": str(intake.num_rows), "row_format": row_format}
    made = manifest.create("dataset", [ManifestFile(DATA, blob.size_bytes, blob.digest)], properties)
    digest = made.digest if request.validate_only else store.put_bytes(made.canonical()).digest
    progress.phase = "done"
    return Import(
        made,
        digest,
        intake.num_rows,
        blob.size_bytes,
        row_format,
        report,
        intake.rows.columns,
        found,
        intake.findings,
    )


def _take_file(
    store: BlobStore,
    opened: Opened,
    request: datasets_pb2.ImportDatasetRequest,
    rules: Rules,
    intake: _Intake,
    limits: Limits,
    closing: ExitStack,
) -> tuple[int, str]:
    """Reads one file; returns its format and its compression."""
    packed = ""
    try:
        file, packed = _open(opened, intake.progress, closing)
        found = request.format or formats.detect(formats.head_of(file))
        file = _from_its_beginning(store, opened, found, intake.progress, limits, closing)
        told = Rules(rules.mapping, intake.rows.row_format or rules.row_format)
        base = intake.rows.num_read
        if found == formats.JSONL:
            parts = _checked_blocks(file, told, limits, opened.size_bytes)
        else:
            known = None if told.row_format == RECORD or told.mapping else KNOWN
            parts = _checked_rows(formats.rows(file, found, known), told, _WORDS[found], base)
        for part in parts:
            intake.take(part)
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        if isinstance(error, OSError) and not packed:
            raise
        raise formats.unknown(
            f"the compressed file cannot be read: {error}", "compress the file again"
        ) from error
    return found, packed


def _from_its_beginning(
    store: BlobStore, opened: Opened, found: int, progress: Progress, limits: Limits, closing: ExitStack
) -> BinaryIO:
    """The decompressed content; of formats that are read from several places as a file."""
    file, packed = _open(opened, progress, closing)
    capped = cast(BinaryIO, _Capped(file, limits.max_bytes))
    if found not in formats.SEEKS:
        return capped
    return _unpacked(store, capped, closing) if packed else file


def _open(opened: Opened, progress: Progress, closing: ExitStack) -> tuple[BinaryIO, str]:
    raw = closing.enter_context(opened.open())
    file, packed = formats.decompressed(cast(BinaryIO, _Counted(raw, progress)))
    progress.num_bytes = 0
    return file, packed


def _unpacked(store: BlobStore, file: BinaryIO, closing: ExitStack) -> BinaryIO:
    """A file that is read from several places, decompressed beside the store."""
    path = store.scratch()
    closing.callback(path.unlink, missing_ok=True)
    with path.open("xb") as to:
        while data := file.read(blocks.BLOCK):
            to.write(data)
    return closing.enter_context(path.open("rb"))


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file, self._progress = file, progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._progress.num_bytes += len(data)
        return data

    def readline(self, size: int = -1) -> bytes:
        data = self._file.readline(size)
        self._progress.num_bytes += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Capped:
    """A file that refuses to be read beyond a number of bytes: a small archive may hold a very large file."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._left, self._most = file, most, most

    def read(self, size: int = -1) -> bytes:
        return self._took(self._file.read(size))

    def readline(self, size: int = -1) -> bytes:
        return self._took(self._file.readline(size))

    def _took(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise ResourceExhausted(
                "DATASET_TOO_LARGE",
                f"the rows are larger than {self._most} bytes",
                field="source_digest",
                remedy="import it in parts, or ask the operator to raise import_max_bytes",
            )
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _checked_rows(rows: Iterable[formats.Row], rules: Rules, word: str, base: int) -> Iterator[Checked]:
    checker = Checker(rules)
    for count, row in enumerate(rows, 1):
        if row.problem:
            checker.refuse(row.place, row.reason, row.value, row.problem, row.remedy)
        else:
            checker.take(word, int(row.place.rpartition(" ")[2]) + base, row.fields)
        if count % _CHUNK_ROWS == 0:
            yield checker.finish()
            checker = Checker(Rules(rules.mapping, checker.out.row_format))
    yield checker.finish()


def _checked_blocks(file: BinaryIO, rules: Rules, limits: Limits, size: int) -> Iterator[Checked]:
    """Checks blocks here, or, of a large file, in processes beside this one, in their order."""
    source = blocks.blocks(file)
    told = rules
    for block in source:  # until one has told the shape of all others
        first = blocks.check(block, told)
        yield first
        told = Rules(rules.mapping, first.row_format or rules.row_format)
        if told.row_format:
            break
    if size < _WORTH_WORKERS or limits.num_workers < 1:
        for block in source:
            yield blocks.check(block, told)
        return
    with ExitStack() as closing:
        workers = [closing.enter_context(Worker()) for _ in range(limits.num_workers)]
        waiting: deque[Future[Checked]] = deque()
        for number, block in enumerate(source):
            waiting.append(workers[number % len(workers)].check(block, told))
            if len(waiting) > 3 * len(workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _finish(intake: _Intake, validate_only: bool, word: str) -> None:
    """Looks at the file as a whole; raises when it cannot be used."""
    findings = intake.findings
    if not validate_only:
        findings.raise_if_bad(intake.rows.num_read)
    if not intake.num_rows and not findings.errors:
        raise formats.empty()
    count, pairs = exact(intake.rows.marks, intake.rows.places)
    remedy = "drop one of them"
    found = [
        Finding(f"{word} {row}", "ROW_DUPLICATE", "", f"same as {word} {first}", remedy, False)
        for row, first in pairs
    ]
    findings.merge(found, [("ROW_DUPLICATE", False, count)] if count else [])
    if intake.rows.unused:
        columns = ", ".join(sorted(map(str, intake.rows.unused))[:20])
        findings.add(
            Finding("", "COLUMN_UNUSED", "", f"columns not used: {columns}", "drop or rename them", False)
        )


def _detected(found: int, packed: str, rows: Checked) -> str:
    name = datasets_pb2.DatasetFormat.Name(found).removeprefix("DATASET_FORMAT_")  # type: ignore[arg-type]
    shape = rows.row_format or "no usable rows"
    return f"{name.lower().replace('_', ' ')}{f', {packed}' if packed else ''}: {shape}"


def check_source(request: datasets_pb2.ImportDatasetRequest) -> str:
    """Which of the sources the request names. Raises `InvalidArgument` unless it is exactly one."""
    named = [name for name in ("source_digest", "path", "url") if getattr(request, name)]
    named += ["hub"] if request.HasField("hub") else []
    if len(named) == 1:
        return named[0]
    raise InvalidArgument(
        "SOURCE_AMBIGUOUS" if named else "SOURCE_MISSING",
        f"{' and '.join(named)} are given" if named else "it is not said where the rows are",
        field=named[1] if named else "source_digest",
        remedy="give exactly one of source_digest (of an upload), path, url and hub",
    )
