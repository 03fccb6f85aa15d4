"""`tunesmith logs`: the log of a job, printed, searched and followed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from tunesmith import names
from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2
from tunesmith.cli import text
from tunesmith.cli.moment import Moment
from tunesmith.cli.output import print_item
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_json, print_table
from tunesmith.tail import LEVELS

if TYPE_CHECKING:
    from tunesmith.faces import Sync
    from tunesmith.jobs import Job

_LEVELS = events_pb2.DESCRIPTOR.enum_types_by_name["LogLevel"]
_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red", "DEBUG": "dim"}


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on to the end of the job.")
@click.option("--tail", type=click.IntRange(0, 1_000_000), help="Only the last lines of what is there.")
@click.option("--contains", default="", help="Only lines with this text.")
@click.option("--grep", "pattern", default="", help="Only lines that match this regular expression (RE2).")
@click.option("-i", "--ignore-case", is_flag=True, help="Let small and capital letters count alike.")
@click.option("--level", type=click.Choice(LEVELS, case_sensitive=False),
              help="Only lines of this weight or heavier.")  # fmt: skip
@click.option(
    "--rank", "ranks", type=click.IntRange(min=0), multiple=True, help="Only this rank; repeatable."
)
@click.option("--attempt", type=click.IntRange(min=1), help="Only this attempt.")
@click.option("--since", type=Moment(), help="Only lines from then on: 15m, 2h, or 2026-11-22T07:00.")
@click.option("--from-step", type=click.IntRange(min=0), default=0, help="Only lines after this step.")
@click.option("--errors", is_flag=True, help="Instead: each distinct error line, and how often it came.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON per log line.")
@click.pass_context
def logs(
    ctx: click.Context,
    job: str,
    follow: bool,
    tail: int | None,
    contains: str,
    pattern: str,
    ignore_case: bool,
    level: str | None,
    ranks: tuple[int, ...],
    attempt: int | None,
    since: datetime | timedelta | None,
    from_step: int,
    errors: bool,
    as_json: bool,
) -> None:
    """Print what the trainer of JOB wrote, all attempts in order. Secrets are not in it.

    \b
    Examples:
      tunesmith logs support-bot-k3f9 --tail 20
      tunesmith logs support-bot-k3f9 -f --contains loss
      tunesmith logs support-bot-k3f9 --level warning --since 1h
      tunesmith logs support-bot-k3f9 --grep "nan|inf" -i --rank 0
      tunesmith logs support-bot-k3f9 --errors
    """
    with connect(ctx) as client:
        found = client.jobs.get(job)
        if errors:
            _print_errors(found, as_json)
            return
        lines = found.logs(
            follow=follow,
            tail=tail,
            contains=contains,
            pattern=pattern,
            ignore_case=ignore_case,
            level=level or "",
            ranks=ranks,
            epoch=attempt or 0,
            since=since,
            min_step=from_step,
        )
        epoch = 0
        for line in lines:
            if as_json:
                print_item(_record(line))
                continue
            if epoch not in (0, line.epoch):
                console().print(f"— attempt {line.epoch} —", style="dim")
            epoch = line.epoch
            click.echo(line.text)


def _record(line: metrics_pb2.LogLine) -> dict[str, object]:
    return {
        "epoch": line.epoch,
        "rank": line.rank,
        "time": line.time.ToJsonString(),
        "level": names.short(_LEVELS, line.level),
        "step": line.step,
        "text": line.text,
    }


def _print_errors(job: Job[Sync], as_json: bool) -> None:
    found = job.error_lines(200)
    if as_json:
        print_json(found)
        return
    print_table(
        ["COUNT", "LAST", "ATTEMPT", "RANK", "STEP", "LINE"],
        [
            (
                str(error.count),
                text.ago(error.line.time),
                str(error.line.epoch),
                str(error.line.rank),
                str(error.line.step),
                _styled(error.line),
            )
            for error in found
        ],
        "no error lines",
    )


def _styled(line: metrics_pb2.LogLine) -> str:
    style = _STYLES.get(names.short(_LEVELS, line.level), "default")
    return f"[{style}]{escape(text.one_line(line.text))}[/{style}]"
