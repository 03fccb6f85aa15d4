"""`tunesmith watch` on a terminal: the whole screen, with loss, node, log and what happened."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tunesmith import names
from tunesmith.api.jobs.v1 import jobs_pb2
from tunesmith.api.metrics.v1 import events_pb2
from tunesmith.api.metrics.v1.metrics_pb2 import LogLine
from tunesmith.cli import text
from tunesmith.cli.plot import plot
from tunesmith.cli.screen import Changes, bar, figures, waiting
from tunesmith.connection import Connection
from tunesmith.errors import TunesmithError
from tunesmith.job import Job
from tunesmith.metrics import Series
from tunesmith.nodes import Nodes
from tunesmith.tail import LogFilter, log_pages, tail_log

if TYPE_CHECKING:
    from tunesmith.faces import Async, Sync

LEAST_WIDTH, LEAST_HEIGHT = 60, 18
_CURVE_POINTS = 400
_LINES = 200
_NODE_SECONDS = 3.0
_AGAIN_SECONDS = 2.0
_NODE_SPAN = timedelta(minutes=10)
_KEYS = ("cpu/percent", "memory/used_bytes", "gpu*/utilization_percent", "gpu*/memory_used_bytes")
_STYLES = {
    events_pb2.LOG_LEVEL_WARNING: "yellow",
    events_pb2.LOG_LEVEL_ERROR: "red",
    events_pb2.LOG_LEVEL_CRITICAL: "bold red",
    events_pb2.LOG_LEVEL_DEBUG: "dim",
}
_TIMEOUT_SECONDS = 30.0


class FullScreen:
    """The screen, and what is on it. `follow` fills it until the job has ended."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._job = jobs_pb2.Job()
        self._changes = Changes()
        self._happened: deque[Text] = deque(maxlen=_LINES)
        self._lines: deque[Text] = deque(maxlen=_LINES)
        self._curve: list[tuple[int, float]] = []
        self._node, self._series = "", {}  # type: tuple[str, dict[str, Series]]
        self._trouble = ""

    def follow(self, job: Job[Sync]) -> None:
        """Follows a job to its end, whose form it then has; Ctrl-C ends it before, and says so."""
        live = Live(
            console=self._out, screen=True, refresh_per_second=4, get_renderable=self._render,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        try:
            with live:
                asyncio.run(self._follow(job))
        except KeyboardInterrupt:
            again = f"`tunesmith watch {job.display_name}` follows it again"
            self._out.print(f"stopped watching; the job goes on. {again}", style="dim")
            raise

    async def _follow(self, job: Job[Sync]) -> None:
        core = Connection(job._core.profile, _TIMEOUT_SECONDS, None)
        mine: Job[Async] = Job(core, job.proto)
        beside = [
            asyncio.create_task(self._keep(work, mine)) for work in (self._follow_log, self._follow_node)
        ]
        try:
            await self._keep_once(self._read_curve, mine)
            async for update in mine.watch(on_gap=self._gap):
                self._update(update)
        finally:
            job.proto = mine.proto
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await core.close()

    async def _keep(self, work: object, job: Job[Async]) -> None:
        """Does a part of the work for ever; when the server cannot answer the rest of the screen goes on."""
        while True:
            await self._keep_once(work, job)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _keep_once(self, work: object, job: Job[Async]) -> None:
        with contextlib.suppress(TunesmithError):
            assert callable(work)
            await work(job)

    async def _read_curve(self, job: Job[Async]) -> None:
        """Reads the loss so far, for a watcher who comes late."""
        if not job.proto.progress.step:
            return
        curves = await job.series("train/loss", max_points=_CURVE_POINTS)
        if found := curves.get("train/loss"):
            self._curve = list(zip(map(int, found.steps), map(float, found.values), strict=True))

    async def _follow_log(self, job: Job[Async]) -> None:
        self._lines.clear()
        revision = 0
        async for page in log_pages(job._core, LogFilter().request(job.name), _LINES):
            revision = page.revision
            self._lines.extend(map(_line, page.lines))
        end = asyncio.get_running_loop().create_future()
        tailing = tail_log(job._core, job.name, LogFilter(), revision, end, lambda: job.proto.terminal)
        async with contextlib.aclosing(tailing) as lines:
            async for line in lines:
                self._lines.append(_line(line))

    async def _follow_node(self, job: Job[Async]) -> None:
        nodes: Nodes[Async] = Nodes(job._core)
        epoch = -1
        while True:
            if job.proto.epoch != epoch:
                epoch = job.proto.epoch
                attempts = await job.attempts() if epoch else []
                self._node = names.last_part(attempts[0].nodes[0]) if attempts and attempts[0].nodes else ""
            if self._node:
                self._series = await nodes.series(self._node, *_KEYS, since=_NODE_SPAN, max_points=60)
            await asyncio.sleep(_NODE_SECONDS)

    def _gap(self, error: TunesmithError | None) -> None:
        self._trouble = "connection lost; trying again …"

    def _update(self, job: jobs_pb2.Job) -> None:
        self._trouble = ""
        done = job.progress
        if done.step > (self._curve[-1][0] if self._curve else 0):
            self._curve.append((done.step, done.loss))
            if len(self._curve) > 2 * _CURVE_POINTS:
                self._curve = self._curve[::2]
        self._job = job
        for change in self._changes.of(job):
            self._happened.append(Text.from_markup(f"[dim]{time.strftime('%H:%M:%S')}[/dim]  {change}"))

    def _render(self) -> RenderableType:
        job, width, height = self._job, self._out.width, self._out.height
        if not job.job_id:
            return Text("connecting …", style="dim")
        head = self._head(job)
        layout = Layout()
        plot_height = max(6, min(14, (height - len(head)) // 2))
        layout.split_column(
            Layout(Group(*head), name="head", size=len(head)),
            Layout(name="middle", size=plot_height),
            Layout(name="below"),
            Layout(Text("Ctrl-C stops watching; the job goes on", style="dim"), name="foot", size=1),
        )
        side = min(44, width // 2)
        layout["middle"].split_row(
            Layout(self._loss(width - side - 4, plot_height - 2)), Layout(self._machine(side - 4), size=side)
        )
        rest = height - len(head) - plot_height - 3
        layout["below"].split_row(
            Layout(_panel("log", _last(self._lines, rest, "no lines yet"))),
            Layout(_panel("events", _last(self._happened, rest, "nothing yet")), size=side),
        )
        return layout

    def _head(self, job: jobs_pb2.Job) -> list[RenderableType]:
        head = Text.from_markup(
            f"[bold]{escape(job.display_name)}[/bold]  {text.styled_state(job)}",
            overflow="ellipsis",
        )
        head.no_wrap = True
        on = f"   {job.spec.base_model} on {job.spec.dataset}" if job.spec.base_model else ""
        head.append(on, style="dim")
        parts: list[RenderableType] = [head]
        if job.progress.total_steps:
            parts.append(bar(job))
        parts.append(Text(figures(job), no_wrap=True, overflow="ellipsis"))
        if words := self._trouble or waiting(job):
            parts.append(Text(text.one_line(words), style="yellow", no_wrap=True, overflow="ellipsis"))
        return parts

    def _loss(self, width: int, height: int) -> RenderableType:
        if len(self._curve) < 2 or height < 4:
            return _panel("loss", Text("no points yet", style="dim"))
        steps, values = zip(*self._curve, strict=True)
        curve = Series("", steps, values, (), (), (), len(steps))
        drawn = plot(curve, width, height - 1, "step")
        drawn = drawn[1:] or drawn  # its own title stands above the panel
        return _panel("loss", Text("\n".join(drawn), style="blue", no_wrap=True))

    def _machine(self, width: int) -> RenderableType:
        if not self._series:
            return _panel(self._node or "node", Text("no figures yet" if self._node else "none", style="dim"))
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=16)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True)
        for key, curve in self._series.items():
            values = [float(value) for value in curve.values]
            if not values:
                continue
            if key.endswith("percent"):
                gauge: RenderableType = ProgressBar(total=100, completed=min(values[-1], 100), width=10)
                table.add_row(_short(key), f"{values[-1]:.0f} %", gauge)
            else:
                table.add_row(_short(key), text.size(values[-1]), text.sparkline(values, 10))
        return _panel(self._node, table)


def fits(out: Console) -> bool:
    """Whether a terminal is large enough for the whole screen."""
    return out.is_terminal and out.width >= LEAST_WIDTH and out.height >= LEAST_HEIGHT


def _line(line: LogLine) -> Text:
    words = text.one_line(line.text)
    return Text(words, style=_STYLES.get(line.level, ""), no_wrap=True, overflow="ellipsis")


def _last(lines: Iterable[Text], count: int, empty: str) -> RenderableType:
    kept: Sequence[Text] = list(lines)[-max(count, 1) :]
    return Group(*kept) if kept else Text(empty, style="dim")


def _panel(title: str, content: RenderableType) -> Panel:
    return Panel(content, title=escape(title), title_align="left", border_style="dim")


def _short(key: str) -> str:
    """Returns a node's metric in few letters: `gpu0 util`, `memory`."""
    owner, _, what = key.partition("/")
    if owner in ("cpu", "memory"):
        return owner
    return f"{owner} {'memory' if what.startswith('memory') else what.removesuffix('_percent')[:4]}"
