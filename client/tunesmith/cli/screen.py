"""What `watch` draws: a live panel on a terminal, plain lines into a pipe, JSON lines for programs."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tunesmith.api.jobs.v1 import jobs_pb2, state_pb2
from tunesmith.cli import text
from tunesmith.cli.session import console
from tunesmith.cli.table import print_json_line
from tunesmith.errors import TunesmithError

if TYPE_CHECKING:
    from tunesmith.faces import Sync
    from tunesmith.jobs import Job

# A pipe gets a line this often at most, besides every change of state.
_LINE_SECONDS = 5.0
_CURVE_POINTS = 120


class Screen(Protocol):
    """Where the updates of a job go."""

    def update(self, job: jobs_pb2.Job) -> None:
        """Shows the job as it is now."""

    def gap(self, error: TunesmithError | None) -> None:
        """Tells that the connection broke and is being made again."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_screen(job: Job[Sync], as_json: bool) -> Screen:
    """Returns the screen that fits: JSON on demand, the panel on a terminal, lines otherwise."""
    if as_json:
        return JsonScreen()
    out = console()
    return LiveScreen(out, _curve(job)) if out.is_terminal else LineScreen()


def _curve(job: Job[Sync]) -> list[float]:
    """Returns the loss so far, for a watcher who comes late; none when the store cannot answer now."""
    if not job.proto.progress.step:
        return []
    try:
        curves = job.series("train/loss", max_points=_CURVE_POINTS)
    except TunesmithError:
        return []
    return [float(value) for value in curves["train/loss"].values] if "train/loss" in curves else []


class Changes:
    """Finds what is new in an update, as sentences."""

    def __init__(self) -> None:
        self._state: tuple[int, int] | None = None
        self._epoch = 0
        self._checkpoint = 0

    def of(self, job: jobs_pb2.Job) -> list[str]:
        """Returns the changes since the last update, as rich markup."""
        found = []
        if (job.state, job.state_reason) != self._state:
            self._state = (job.state, job.state_reason)
            found.append(text.styled_state(job))
        if job.epoch > max(self._epoch, 1):
            resumed = f" from step {job.checkpoint.step}" if job.HasField("checkpoint") else ""
            found.append(f"attempt {job.epoch}{resumed}")
        self._epoch = job.epoch
        if job.checkpoint.step > self._checkpoint:
            self._checkpoint = job.checkpoint.step
            found.append(f"checkpoint at step {job.checkpoint.step} ({text.size(job.checkpoint.size_bytes)})")
        return found


class JsonScreen:
    """A line of JSON per update."""

    def update(self, job: jobs_pb2.Job) -> None:
        """Prints the job."""
        print_json_line(job)

    def gap(self, error: TunesmithError | None) -> None:
        """Says nothing: the next update is a whole job again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves nothing behind."""


class LineScreen(JsonScreen):
    """A plain line per change, and one every few seconds while it trains."""

    def __init__(self) -> None:
        self._changes = Changes()
        self._last_line = float("-inf")
        self._last_step = -1
        self._gap = False

    def update(self, job: jobs_pb2.Job) -> None:
        """Prints what is new."""
        self._gap = False
        for change in self._changes.of(job):
            self._line(Text.from_markup(change).plain)
        due = (
            time.monotonic() - self._last_line >= _LINE_SECONDS
            or job.progress.step == job.progress.total_steps
        )
        if due and job.progress.step > max(self._last_step, 0):
            self._last_line, self._last_step = time.monotonic(), job.progress.step
            self._line(_progress_line(job))

    def gap(self, error: TunesmithError | None) -> None:
        """Prints once that the connection broke."""
        if not self._gap:
            self._gap = True
            self._line("connection lost; trying again")

    def _line(self, words: str) -> None:
        click.echo(f"{time.strftime('%H:%M:%S')}  {words}")


class LiveScreen:
    """A panel that is redrawn in place; changes of state scroll above it."""

    def __init__(self, out: Console, curve: list[float]) -> None:
        self._out = out
        self._curve = curve
        self._changes = Changes()
        self._job = jobs_pb2.Job()
        self._trouble = ""
        self._live = Live(console=out, refresh_per_second=8, get_renderable=self._render, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)
        if kind is KeyboardInterrupt and not self._job.terminal:
            again = f"`tunesmith watch {self._job.display_name}` follows it again"
            self._out.print(f"stopped watching; the job goes on. {again}", style="dim")

    def update(self, job: jobs_pb2.Job) -> None:
        """Redraws the panel and prints what is new above it."""
        self._trouble = ""
        if job.progress.step > self._job.progress.step:
            self._curve.append(job.progress.loss)
        self._job = job
        for change in self._changes.of(job):
            self._live.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim]  {change}")

    def gap(self, error: TunesmithError | None) -> None:
        """Shows in the panel that the connection broke; the next update takes it away."""
        self._trouble = "connection lost; trying again …"

    def _render(self) -> RenderableType:
        job = self._job
        if not job.job_id:
            return Text("connecting …", style="dim")
        head = Text.from_markup(f"[bold]{escape(job.display_name)}[/bold]  {text.styled_state(job)}")
        head.append(f"   {job.spec.base_model} on {job.spec.dataset}", style="dim")
        parts: list[RenderableType] = [head]
        if job.progress.total_steps:
            parts += [bar(job), Text(figures(job), no_wrap=True, overflow="ellipsis")]
            parts.append(Text(text.sparkline(self._curve, max(self._out.width - 2, 10)), style="blue"))
        if words := waiting(job):
            parts.append(Text(words, style="yellow"))
        if self._trouble:
            parts.append(Text(self._trouble, style="yellow"))
        return Group(*parts)


def bar(job: jobs_pb2.Job) -> RenderableType:
    """Returns the progress of a job as a bar with its figures."""
    done = job.progress
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    bar = ProgressBar(total=done.total_steps, completed=done.step)
    left = _left(job)
    grid.add_row(bar, f"{text.percent(job)}  step {done.step:,}/{done.total_steps:,}{left and f'   {left}'}")
    return grid


def figures(job: jobs_pb2.Job) -> str:
    """Returns loss and pace of a job in one line."""
    done = job.progress
    if not done.step:
        return done.phase
    parts = [
        f"loss {text.loss(done.loss)} (first {text.loss(done.first_loss)})",
        f"held out {text.loss(done.eval_loss)}" if done.HasField("eval_loss") else "",
        f"{done.tokens_per_second:,.0f} tokens/s" if done.tokens_per_second else "",
        f"epoch {done.epoch:.2f}" if done.epoch else "",
        text.computing(done),
        text.memory(done),
    ]
    return "   ".join(part for part in parts if part)


def _left(job: jobs_pb2.Job) -> str:
    """Returns the time left, counted down between updates; nothing when it is not known or over."""
    done = job.progress
    if not done.HasField("eta") or done.step >= done.total_steps:
        return ""
    passed = time.time() - done.time.ToNanoseconds() / 1e9 if done.time.seconds else 0.0
    return text.duration(done.eta.ToNanoseconds() / 1e9 - max(0.0, passed)) + " left"


def _progress_line(job: jobs_pb2.Job) -> str:
    parts = [
        f"step {job.progress.step}/{job.progress.total_steps} ({text.percent(job)})",
        figures(job),
        _left(job),
    ]
    return "   ".join(part for part in parts if part)


def waiting(job: jobs_pb2.Job) -> str:
    """Returns why a queued job waits, if the scheduler said so."""
    if job.state != state_pb2.JOB_STATE_QUEUED:
        return ""
    return next((item.message for item in job.conditions if item.type == "Scheduled" and item.message), "")
