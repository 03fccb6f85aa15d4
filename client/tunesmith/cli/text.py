"""Times, sizes and states in the words of the command line."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from tunesmith import names
from tunesmith.api.jobs.v1 import state_pb2

if TYPE_CHECKING:
    from tunesmith.api.jobs.v1.jobs_pb2 import Job
    from tunesmith.api.jobs.v1.state_pb2 import Progress

_STATES = state_pb2.DESCRIPTOR.enum_types_by_name["JobState"]
_REASONS = state_pb2.DESCRIPTOR.enum_types_by_name["StateReason"]
_STYLES = {
    "VALIDATING": "cyan",
    "QUEUED": "cyan",
    "STARTING": "cyan",
    "RUNNING": "blue",
    "PAUSING": "yellow",
    "PAUSED": "yellow",
    "CANCELLING": "yellow",
    "FINALIZING": "blue",
    "SUCCEEDED": "green",
    "FAILED": "red",
    "CANCELLED": "magenta",
}
_BARS = "▁▂▃▄▅▆▇█"


def state(job: Job) -> str:
    """Returns the state as a word, with its reason where there is one: `QUEUED (RETRY)`."""
    reason = names.short(_REASONS, job.state_reason)
    shown = f" ({reason})" if reason not in ("UNSPECIFIED", "NEW") else ""
    return names.short(_STATES, job.state) + shown


def styled_state(job: Job) -> str:
    """Returns the state with its colour, as rich markup."""
    style = _STYLES.get(names.short(_STATES, job.state), "default")
    return f"[{style}]{state(job)}[/{style}]"


def duration(seconds: float) -> str:
    """Returns a span with its two largest units: `45 s`, `3 min 20 s`, `5 h 02 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def ago(time: Timestamp) -> str:
    """Returns how long ago a moment was, in its largest unit; `-` when it is not set."""
    if not time.seconds:
        return "-"
    seconds = (datetime.now(UTC) - time.ToDatetime(UTC)).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{int(max(seconds, 0))} s ago"


def clock(time: Timestamp) -> str:
    """Returns a moment as local date and time; `-` when it is not set."""
    return time.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if time.seconds else "-"


def size(num_bytes: float) -> str:
    """Returns a size in decimal units: `512 B`, `2.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def count(number: float) -> str:
    """Returns a count shortened: `950`, `135M`, `1.2B`."""
    for unit in ("", "k", "M", "B"):
        if number < 1000:
            return f"{number:.0f}{unit}" if unit == "" or number >= 100 else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f}T"


def one_line(words: str) -> str:
    """Returns what a model wrote in one line, without characters that would steer the terminal."""
    return "".join(char if char.isprintable() else "�" for char in " ".join(words.split()))


def loss(value: float) -> str:
    """Returns a loss with four digits."""
    return f"{value:.4g}"


def computing(done: Progress) -> str:
    """Returns how much a run computes: `182 TFLOP/s, 58.3 % of the peak`; nothing when it is not known."""
    pace, unit = done.tflops * 1000, "GFLOP/s"
    for larger in ("TFLOP/s", "PFLOP/s"):
        if pace >= 1000:
            pace, unit = pace / 1000, larger
    if not pace:
        return ""
    share = f", {100 * done.mfu:.1f} % of the peak" if done.HasField("mfu") else ""
    return f"{pace:.3g} {unit}{share}"


def memory(done: Progress) -> str:
    """Returns what a trainer takes: of its GPU at most, else of the node now; nothing when not known."""
    if done.gpu_memory_total_bytes:
        return f"{size(done.gpu_memory_peak_bytes)} of {size(done.gpu_memory_total_bytes)} GPU memory"
    return f"{size(done.resident_bytes)} memory" if done.resident_bytes else ""


def percent(job: Job) -> str:
    """Returns the share of steps done, or `-` before the first."""
    total = job.progress.total_steps
    return f"{100 * job.progress.step // total} %" if total else "-"


def sparkline(values: list[float], width: int) -> str:
    """Returns values as a line of bars, at most `width` characters; NaN and infinities are left out."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    columns = min(width, len(finite))
    edges = [round(index * len(finite) / columns) for index in range(columns + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)
