"""`tunesmith watch | logs`: following a job to its end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from tunesmith.api.jobs.v1 import jobs_pb2, state_pb2
from tunesmith.cli.failure import JOB_FAILED, detail, say
from tunesmith.cli.session import connect, console

if TYPE_CHECKING:
    from tunesmith.faces import Sync
    from tunesmith.jobs import Job


@click.command()
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON per update.")
@click.pass_context
def watch(ctx: click.Context, job: str, as_json: bool) -> int:
    """Follow JOB live to its end: progress, loss, tokens per second, time left.

    Into a pipe it prints a plain line per change. Ctrl-C stops watching; the job goes on. Exit code 0 means
    that the job succeeded, 4 that it failed or was cancelled.
    """
    with connect(ctx) as client:
        return follow_job(client.jobs.get(job), as_json)


def follow_job(job: Job[Sync], as_json: bool) -> int:
    """Follows a job to its end on the fitting screen and returns the exit code for its outcome."""
    from tunesmith.cli.screen import open_screen

    with open_screen(job, as_json) as screen:
        for update in job.watch(on_gap=screen.gap):
            screen.update(update)
    if not as_json:
        _print_result(job.proto)
    if job.succeeded:
        return 0
    show_failure(job.proto)
    return JOB_FAILED


def _print_result(job: jobs_pb2.Job) -> None:
    from tunesmith.cli.card import print_card

    if job.state == state_pb2.JOB_STATE_SUCCEEDED:
        print_card(job, [])


def show_failure(job: jobs_pb2.Job) -> None:
    """Prints on stderr why a job failed and what to do about it."""
    if job.state == state_pb2.JOB_STATE_CANCELLED:
        say("cancelled:", f"job {job.display_name} was ended by a user", "magenta")
        return
    say("failed:", job.failure.message or f"job {job.display_name} failed", "red")
    detail("reason:", job.failure.reason)
    detail("remedy:", job.failure.remedy)


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on to the end of the job.")
@click.option("--tail", type=click.IntRange(0, 10_000), help="Only the last lines of what is there.")
@click.option("--contains", default="", help="Only lines with this text.")
@click.option("--attempt", type=click.IntRange(min=1), help="Only this attempt.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON per log line.")
@click.pass_context
def logs(
    ctx: click.Context,
    job: str,
    follow: bool,
    tail: int | None,
    contains: str,
    attempt: int | None,
    as_json: bool,
) -> None:
    """Print what the trainer of JOB wrote, all attempts in order.

    \b
    Examples:
      tunesmith logs support-bot-k3f9 --tail 20
      tunesmith logs support-bot-k3f9 -f --contains loss
    """
    with connect(ctx) as client:
        found = client.jobs.get(job)
        out, epoch = console(), 0
        for line in found.logs(follow=follow, contains=contains, tail=tail, epoch=attempt or 0):
            if as_json:
                record = {
                    "epoch": line.epoch,
                    "rank": line.rank,
                    "time": line.time.ToJsonString(),
                    "text": line.text,
                }
                click.echo(json.dumps(record, ensure_ascii=False))
                continue
            if epoch not in (0, line.epoch):
                out.print(f"— attempt {line.epoch} —", style="dim")
            epoch = line.epoch
            click.echo(line.text)
