"""Training data: every shape of row becomes a conversation or a text, checked one by one.

Accepted rows: `messages` (a conversation), `conversations` (as ShareGPT has it), `prompt` and `completion`,
`instruction`, `input` and `output`, `question` and `answer`, or `text`. The result is `data.jsonl`, whose
digest decides whether a dataset has a new version.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.registry.v1 import datasets_pb2
from tunesmith.errors import InvalidArgument, Violation
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore, missing
from tunesmith_kit.manifest import Manifest, ManifestFile
from tunesmith_registry import formats

DATA = "data.jsonl"
_MAX_FINDINGS = 20
_LONG_CHARACTERS = 100_000
_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES = {**_ROLES, "human": "user", "gpt": "assistant", "model": "assistant"}
_SHAPES = "messages | prompt, completion | instruction, output | question, answer | text"

Turn = dict[str, str]


class RowError(Exception):
    """A row cannot be used: which field, what it held, what is wrong and what to do."""

    def __init__(self, field_name: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.field_name, self.value, self.problem, self.remedy = field_name, value, problem, remedy


@dataclass(frozen=True, slots=True)
class Normal:
    """A row in its canonical form."""

    row_format: str
    body: Mapping[str, Any]
    used: frozenset[str]
    num_characters: int
    has_empty_answer: bool


@dataclass
class Import:
    """A checked file, stored in its canonical form."""

    manifest: Manifest
    digest: str
    num_rows: int
    size_bytes: int
    row_format: str
    report: datasets_pb2.ValidationReport


@dataclass
class _Findings:
    report: datasets_pb2.ValidationReport = field(default_factory=datasets_pb2.ValidationReport)
    violations: list[Violation] = field(default_factory=list)

    def error(self, place: str, value: object, problem: str, remedy: str) -> None:
        self.report.num_errors += 1
        if len(self.violations) < _MAX_FINDINGS:
            self.violations.append(Violation(place, str(value)[:200], problem, remedy))

    def warning(self, place: str, reason: str, message: str, remedy: str) -> None:
        self.report.num_warnings += 1
        if len(self.report.findings) < _MAX_FINDINGS:
            detail = common_pb2.ErrorDetail(reason=reason, message=message, field=place, remedy=remedy)
            self.report.findings.append(detail)

    def raise_if_bad(self) -> None:
        if not self.violations:
            return
        first, count = self.violations[0], self.report.num_errors
        raise InvalidArgument(
            "DATASET_ROW_INVALID",
            f"{count} of {self.report.num_rows} rows cannot be used; the first: {first.path} {first.problem}",
            field=first.path,
            value=first.value,
            remedy=first.remedy,
            violations=self.violations,
        )


def read(store: BlobStore, digest: str, file_format: "datasets_pb2.DatasetFormat.ValueType") -> Import:
    """Checks an uploaded file and stores its canonical form. Blocks.

    Raises:
        NotFound: nothing was uploaded under this digest.
        InvalidArgument: the format is not known, there are no rows, or rows cannot be used.
        ResourceExhausted: the disk is full.
    """
    if not store.exists(digest):
        raise missing(digest)
    checker = _Checker()
    writer = store.writer()
    try:
        with store.read(digest) as file:
            found = formats.detect(file)
            for row in formats.rows(file, file_format or found, _FIELDS):
                line = checker.take(row)
                if line and not checker.findings.violations:
                    writer.write(line)
        checker.finish()
        blob = writer.commit()
    finally:
        writer.abort()
    properties = {"num_rows": str(checker.num_rows), "row_format": checker.row_format}
    made = manifest.create("dataset", [ManifestFile(DATA, blob.size_bytes, blob.digest)], properties)
    stored = store.put_bytes(made.canonical())
    return Import(
        made, stored.digest, checker.num_rows, blob.size_bytes, checker.row_format, checker.findings.report
    )


class _Checker:
    """Goes over rows and keeps what it found."""

    def __init__(self) -> None:
        self.findings = _Findings()
        self.row_format = ""
        self.num_rows = 0
        self._seen: dict[bytes, str] = {}
        self._unused: set[str] = set()

    def take(self, row: formats.Row) -> bytes:
        """Returns the row's canonical line, or nothing when it cannot be used."""
        self.findings.report.num_rows += 1
        if row.problem:
            self.findings.error(row.place, row.value, row.problem, row.remedy)
            return b""
        try:
            normal = normalise(row.fields)
            self._same_format(normal)
        except RowError as error:
            place = f"{row.place}, {error.field_name}" if error.field_name else row.place
            self.findings.error(place, error.value, error.problem, error.remedy)
            return b""
        self.num_rows += 1
        line = orjson.dumps(normal.body) + b"\n"
        self._warn(row, normal, line)
        return line

    def _same_format(self, normal: Normal) -> None:
        self.row_format = self.row_format or normal.row_format
        if normal.row_format != self.row_format:
            raise RowError(
                "",
                ", ".join(sorted(normal.used)),
                f"is a row of {normal.row_format} among rows of {self.row_format}",
                "put conversations and plain texts into datasets of their own",
            )

    def _warn(self, row: formats.Row, normal: Normal, line: bytes) -> None:
        if normal.has_empty_answer:
            self.findings.warning(row.place, "ANSWER_EMPTY", "an answer is empty", "fill it or drop the row")
        if normal.num_characters > _LONG_CHARACTERS:
            size = normal.num_characters
            self.findings.warning(
                row.place, "ROW_LONG", f"{size} characters will be cut", "split it, or raise max_length"
            )
        mark = hashlib.blake2b(line, digest_size=12).digest()
        if mark in self._seen:
            self.findings.warning(
                row.place, "ROW_DUPLICATE", f"same as {self._seen[mark]}", "drop one of them"
            )
        else:
            self._seen[mark] = row.place
        self._unused |= row.fields.keys() - normal.used

    def finish(self) -> None:
        """Raises when the file as a whole cannot be used."""
        self.findings.raise_if_bad()
        if not self.num_rows:
            raise formats.empty()
        if self._unused:
            columns = ", ".join(sorted(map(str, self._unused))[:20])
            self.findings.warning("", "COLUMN_UNUSED", f"columns not used: {columns}", "drop or rename them")


def normalise(fields: Mapping[str, Any]) -> Normal:
    """Brings a row into its canonical form; raises `RowError`."""
    for needed, build in _BUILDERS:
        if all(fields.get(name) is not None for name in needed):
            return build(fields)
    for needed, _ in _BUILDERS:
        present = [name for name in needed if name in fields]
        if present and len(needed) > 1:
            lacking = next(name for name in needed if fields.get(name) is None)
            raise RowError(lacking, "", f"is missing beside {present[0]}", f"a row needs one of: {_SHAPES}")
    found = ", ".join(sorted(map(str, fields)))[:200]
    raise RowError("", found, "has none of the known fields", f"a row needs one of: {_SHAPES}")


def _conversation(turns: list[Turn], used: frozenset[str]) -> Normal:
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    if not answers:
        raise RowError(
            "messages", turns[-1]["role"], "has no answer to learn from", "add an assistant message"
        )
    size = sum(len(turn["content"]) for turn in turns)
    empty_answer = any(not answer.strip() for answer in answers)
    return Normal("messages", {"messages": turns}, used, size, empty_answer)


def _from_messages(fields: Mapping[str, Any]) -> Normal:
    return _conversation(_turns(fields, "messages", "role", "content", _ROLES), frozenset({"messages"}))


def _from_sharegpt(fields: Mapping[str, Any]) -> Normal:
    turns = _turns(fields, "conversations", "from", "value", _SHAREGPT_ROLES)
    return _conversation(turns, frozenset({"conversations"}))


def _turns(
    fields: Mapping[str, Any], name: str, role_name: str, text_name: str, roles: Mapping[str, str]
) -> list[Turn]:
    value = fields[name]
    if not isinstance(value, list) or not value:
        raise RowError(name, value, "must be a list of messages", f'write [{{"{role_name}": …}}, …]')
    turns = []
    for index, item in enumerate(value):
        place = f"{name}[{index}]"
        if not isinstance(item, Mapping):
            raise RowError(place, item, "must be an object", f'write {{"{role_name}": …, "{text_name}": …}}')
        role, text = item.get(role_name), item.get(text_name)
        if not isinstance(role, str) or role not in roles:
            raise RowError(f"{place}.{role_name}", role, "is no known role", f"use {', '.join(roles)}")
        if not isinstance(text, str):
            raise RowError(f"{place}.{text_name}", text, "must be text", "write a string")
        turns.append({"role": roles[role], "content": text})
    return turns


def _text(fields: Mapping[str, Any], name: str, blank: bool = False) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise RowError(name, value, "must be text", "write a string")
    if not blank and not value.strip():
        raise RowError(name, value, "is empty", "fill it or drop the row")
    return value


def _pair(question: str, answer: str, more: str = "") -> Callable[[Mapping[str, Any]], Normal]:
    def build(fields: Mapping[str, Any]) -> Normal:
        asked, used = _text(fields, question), {question, answer}
        if more and fields.get(more):
            asked, used = f"{asked}\n\n{_text(fields, more)}", used | {more}
        reply = _text(fields, answer, blank=True)
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
        return _conversation(turns, frozenset(used | ({more} if more in fields else set())))

    return build


def _from_text(fields: Mapping[str, Any]) -> Normal:
    text = _text(fields, "text")
    return Normal("text", {"text": text}, frozenset({"text"}), len(text), False)


_BUILDERS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Normal]], ...] = (
    (("messages",), _from_messages),
    (("conversations",), _from_sharegpt),
    (("prompt", "completion"), _pair("prompt", "completion")),
    (("instruction", "output"), _pair("instruction", "output", "input")),
    (("question", "answer"), _pair("question", "answer")),
    (("text",), _from_text),
)
_FIELDS = frozenset({"input"}.union(*(needed for needed, _ in _BUILDERS)))
