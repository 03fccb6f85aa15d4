"""`tunesmith watch`: following a job to its end."""

from __future__ import annotations

import sys
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
    """Follow JOB live to its end: progress, time left, loss, its node, its log, what happens.

    It takes the whole screen of a terminal of 60 x 18 characters or more, and some lines of a smaller one.
    Into a pipe it prints a plain line per change. Ctrl-C stops watching; the job goes on. Exit code 0 means
    that the job succeeded, 4 that it failed or was cancelled.
    """
    with connect(ctx) as client:
        return follow_job(client.jobs.get(job), as_json)


def follow_job(job: Job[Sync], as_json: bool) -> int:
    """Follows a job to its end on the fitting screen and returns the exit code for its outcome."""
    if as_json or not _whole_screen(job):
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


def _whole_screen(job: Job[Sync]) -> bool:
    """Follows a job on the whole screen, where there is one that is large enough."""
    if not sys.stdout.isatty():
        return False
    from tunesmith.cli.watching import FullScreen, fits

    out = console()
    if not fits(out):
        return False
    FullScreen(out).follow(job)
    return True


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
