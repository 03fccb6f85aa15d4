"""Files with curves, made piece by piece: Arrow, Parquet, CSV, JSON lines, TensorBoard."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tunesmith.api.metrics.v1 import events_pb2, export_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_metrics import tensorboard
from tunesmith_metrics.series import Curve

_ROWS = 8192  # in a piece, which is below a megabyte
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Exporter(Protocol):
    """Makes a file. Pieces follow each other; empty ones are left out by who sends them."""

    def begin(self) -> bytes:
        """What the file begins with."""

    def curve(self, key: str, curve: Curve) -> Iterator[bytes]:
        """The points of a curve."""

    def rich(self, key: str, value: events_pb2.RichValue) -> bytes:
        """A value that is no number; nothing where the form has no place for it."""

    def end(self) -> bytes:
        """What the file ends with."""


class _Csv:
    def __init__(self, keys: Sequence[str]) -> None:
        self._cells = {key: _escaped(key) for key in keys}

    def begin(self) -> bytes:
        return b"key,step,time,value\r\n"

    def curve(self, key: str, curve: Curve) -> Iterator[bytes]:
        for steps, times, values in _rows(curve):
            cell = self._cells[key]
            lines = [
                f"{cell},{step},{time}Z,{value!r}\r\n"
                for step, time, value in zip(steps, times, values, strict=True)
            ]
            yield "".join(lines).encode()

    def rich(self, key: str, value: events_pb2.RichValue) -> bytes:
        return b""

    def end(self) -> bytes:
        return b""


class _JsonLines:
    def begin(self) -> bytes:
        return b""

    def curve(self, key: str, curve: Curve) -> Iterator[bytes]:
        name = json.dumps(key, ensure_ascii=False)
        for steps, times, values in _rows(curve):
            lines = [
                f'{{"key":{name},"step":{step},"time":"{time}Z","value":{_number(value)}}}\n'
                for step, time, value in zip(steps, times, values, strict=True)
            ]
            yield "".join(lines).encode()

    def rich(self, key: str, value: events_pb2.RichValue) -> bytes:
        return b""

    def end(self) -> bytes:
        return b""


class _TensorBoard:
    def __init__(self, time_us: int) -> None:
        self._time_us = time_us

    def begin(self) -> bytes:
        return tensorboard.head(self._time_us)

    def curve(self, key: str, curve: Curve) -> Iterator[bytes]:
        yield from tensorboard.scalars(key, curve)

    def rich(self, key: str, value: events_pb2.RichValue) -> bytes:
        return tensorboard.rich(key, value)

    def end(self) -> bytes:
        return b""


@dataclass(frozen=True, slots=True)
class Form:
    """A form of file: how its name ends, its media type, and whether it takes texts and histograms."""

    suffix: str
    media_type: str
    takes_rich: bool = False


FORMS: dict[int, Form] = {
    export_pb2.EXPORT_FORMAT_ARROW: Form("arrows", "application/vnd.apache.arrow.stream"),
    export_pb2.EXPORT_FORMAT_PARQUET: Form("parquet", "application/vnd.apache.parquet"),
    export_pb2.EXPORT_FORMAT_CSV: Form("csv", "text/csv; charset=utf-8"),
    export_pb2.EXPORT_FORMAT_JSONL: Form("jsonl", "application/jsonl"),
    export_pb2.EXPORT_FORMAT_TENSORBOARD: Form("tfevents", "application/octet-stream", takes_rich=True),
}


def form_of(number: int) -> Form:
    """Returns a form of file.

    Raises:
        InvalidArgument: there is no such form.
    """
    if number not in FORMS:
        raise InvalidArgument(
            "FIELD_INVALID",
            "there is no such form of file",
            field="format",
            value=number,
            remedy="use one of " + ", ".join(export_pb2.ExportFormat.keys()[1:]),
        )
    return FORMS[number]


def exporter(form: int, keys: Sequence[str], time_us: int) -> Exporter:
    """Returns what makes a file of these keys. `time_us` is the Unix time at which it is made."""
    if form in (export_pb2.EXPORT_FORMAT_ARROW, export_pb2.EXPORT_FORMAT_PARQUET):
        # 40 MB that a service which exports nothing does without.
        from tunesmith_metrics.arrow import ArrowFile

        return ArrowFile(keys, parquet=form == export_pb2.EXPORT_FORMAT_PARQUET)
    if form == export_pb2.EXPORT_FORMAT_CSV:
        return _Csv(keys)
    return _JsonLines() if form == export_pb2.EXPORT_FORMAT_JSONL else _TensorBoard(time_us)


def file_name(form: int, job_id: str) -> str:
    """A name for the file. TensorBoard finds its files by a part of their names."""
    if form == export_pb2.EXPORT_FORMAT_TENSORBOARD:
        return f"events.out.tfevents.{job_id}"
    return f"{job_id}.{FORMS[form].suffix}"


def _rows(curve: Curve) -> Iterator[tuple[list[int], list[str], list[float]]]:
    for start in range(0, len(curve.steps), _ROWS):
        part = slice(start, start + _ROWS)
        times = np.datetime_as_string(curve.times_us[part].view("M8[us]"))
        yield curve.steps[part].tolist(), times.tolist(), curve.values[part].tolist()


def _number(value: float) -> str:
    if value - value == 0:
        return repr(value)
    return '"NaN"' if value != value else '"Infinity"' if value > 0 else '"-Infinity"'


def _escaped(text: str) -> str:
    """A cell of a table; one that a spreadsheet would take for a formula becomes a text."""
    if text.startswith(_FORMULA):
        text = f"'{text}"
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text
