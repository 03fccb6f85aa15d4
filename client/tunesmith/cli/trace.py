"""`tunesmith trace`: where the time of a job went, from the request to the registered version."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click
from google.protobuf.timestamp_pb2 import Timestamp
from rich.markup import escape

from tunesmith.api.metrics.v1 import trace_pb2
from tunesmith.cli import text
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_json, print_table

_STYLES = {
    "gateway": "cyan", "jobs": "blue", "registry": "magenta", "metrics": "white", "agent": "yellow",
    "trainer": "green",
}  # fmt: skip
_FOLD = 4  # so many of one name side by side become one line
_LONGEST_NAME = 36
_NUMBERS = 30  # columns for when it began, how long it took, and the space between all
_NARROWEST, _WIDEST, _PIPED = 10, 60, 40


@dataclass(frozen=True)
class _Row:
    """A line: one span, or several of one name that stand side by side."""

    depth: int
    spans: Sequence[trace_pb2.TraceSpan]

    @property
    def start(self) -> float:
        return min(_seconds(span.start_time) for span in self.spans)

    @property
    def took(self) -> float:
        return sum(_seconds(span.end_time) - _seconds(span.start_time) for span in self.spans)

    @property
    def errors(self) -> list[str]:
        return [span.error for span in self.spans if span.status == trace_pb2.TRACE_SPAN_STATUS_ERROR]


@click.command()
@click.argument("job")
@click.option("--all", "unfolded", is_flag=True, help="A line for each span, also where many are alike.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of spans.")
@click.pass_context
def trace(ctx: click.Context, job: str, unfolded: bool, as_json: bool) -> None:
    """Show where the time of JOB went: what each process did for it, and when.

    Indented below each span is what is part of it; a bar is where it lies in the whole. Gaps between bars
    are times in which nobody noted anything, as between two checkpoints. Many spans of one name side by side
    become one line, with the sum of their times. Reads, heartbeats and reports are in no trace.

    \b
    Examples:
      tunesmith trace support-bot-k3f9
      tunesmith trace support-bot-k3f9 --all --output csv > spans.csv
    """
    with connect(ctx) as client:
        found = client.jobs.get(job).trace()
    if as_json:
        print_json(found.spans)
        return
    rows = list(_rows(found.spans, unfolded))
    if rows:
        begin = min(row.start for row in rows)
        end = max(_seconds(span.end_time) for span in found.spans)
        counted = f"{len(found.spans)} span{'' if len(found.spans) == 1 else 's'} in {_brief(end - begin)}"
        console().print(f"trace {found.trace_id}  {counted}")
    print_table(
        ["SPAN", "SERVICE", "BEGAN", "TOOK", "WHEN"],
        _lines(rows),
        "no spans are stored of this job: it is older than the server's version, or traces are off",
    )
    for row in rows:
        for error in row.errors:
            console().print(f"[red]{escape(_name(row))}[/red]: {escape(text.one_line(error))}")
    if found.num_left_out:
        left = (
            f"{found.num_left_out} more spans were left out: the first of each name and the newest are kept"
        )
        console(stderr=True).print(left, style="dim")


def _lines(rows: Sequence[_Row]) -> Iterator[tuple[str, str, str, str, str]]:
    if not rows:
        return
    begin = min(row.start for row in rows)
    whole = max(_seconds(span.end_time) for row in rows for span in row.spans) - begin or 1e-9
    labels = [_label(row) for row in rows]
    width = _room(max(map(len, labels)) + max(len(row.spans[0].service) for row in rows))
    for row, shown in zip(rows, labels, strict=True):
        service = row.spans[0].service
        style = "red" if row.errors else _STYLES.get(service, "white")
        bar = _bar(row, begin, whole, width)
        yield (
            escape(shown),
            escape(text.one_line(service)[:16]),
            f"+{_brief(row.start - begin)}",
            _brief(row.took),
            f"[{style}]{bar}[/{style}]",
        )


def _room(taken: int) -> int:
    """How wide the bars may be beside columns that take so much."""
    out = console()
    return max(_NARROWEST, min(_WIDEST, out.width - taken - _NUMBERS)) if out.is_terminal else _PIPED


def _label(row: _Row) -> str:
    words = "  " * row.depth + _name(row)
    return words if len(words) <= _LONGEST_NAME else words[: _LONGEST_NAME - 1] + "…"


def _name(row: _Row) -> str:
    """What was done, as people say it: of an rpc only the method."""
    name = text.one_line(row.spans[0].name)
    if name.startswith("tunesmith."):
        name = name.rpartition("/")[2]
    if len(row.spans) > 1:
        return f"{name} x {len(row.spans)}"
    step = row.spans[0].attributes.get("step", "")
    return f"{name} {text.one_line(step)}" if step else name


def _bar(row: _Row, begin: float, whole: float, width: int) -> str:
    cells = [" "] * width
    for span in row.spans:
        first = min(width - 1, int((_seconds(span.start_time) - begin) / whole * width))
        last = min(width - 1, max(first, round((_seconds(span.end_time) - begin) / whole * width) - 1))
        short = (_seconds(span.end_time) - _seconds(span.start_time)) / whole * width < 0.5
        for at in range(first, last + 1):
            cells[at] = "▏" if short and cells[at] == " " else "█"
    return "".join(cells).rstrip()


def _rows(spans: Sequence[trace_pb2.TraceSpan], unfolded: bool) -> Iterator[_Row]:
    """The spans as a tree in lines. What is part of a span that is not stored stands at the left."""
    known = {span.span_id for span in spans}
    parts: dict[str, list[trace_pb2.TraceSpan]] = defaultdict(list)
    for span in spans:
        parts[span.parent_span_id if span.parent_span_id in known else ""].append(span)

    seen: set[str] = set()
    waiting = [(0, alike) for alike in reversed(_alike(parts[""], parts, unfolded))]
    while waiting:
        depth, row = waiting.pop()
        if row[0].span_id in seen:
            continue
        seen.update(span.span_id for span in row)
        yield _Row(depth, row)
        below = _alike(parts[row[0].span_id], parts, unfolded) if len(row) == 1 else []
        waiting += [(depth + 1, alike) for alike in reversed(below)]


def _alike(
    spans: Sequence[trace_pb2.TraceSpan], parts: dict[str, list[trace_pb2.TraceSpan]], unfolded: bool
) -> list[list[trace_pb2.TraceSpan]]:
    """Spans by line: those of one name side by side that have no parts share one if they are many."""
    groups: dict[tuple[str, str], list[trace_pb2.TraceSpan]] = defaultdict(list)
    for span in spans:
        if not parts.get(span.span_id):
            groups[span.service, span.name].append(span)
    lines, done = [], set()
    for span in spans:
        key = (span.service, span.name)
        group = groups.get(key, [])
        if unfolded or len(group) < _FOLD or parts.get(span.span_id):
            lines.append([span])
        elif key not in done:
            done.add(key)
            lines.append(group)
    return lines


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9


def _brief(seconds: float) -> str:
    """A short time with three digits, a long one with its two largest units."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 60 else text.duration(seconds)
