"""`tunesmith submit | list | show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli import text
from tunesmith.cli.failure import JOB_FAILED, say
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_json, print_table
from tunesmith.errors import DeadlineExceeded

if TYPE_CHECKING:
    from tunesmith.api.jobs.v1 import jobs_pb2
    from tunesmith.faces import Sync
    from tunesmith.jobs import Job

# The registry answers within milliseconds; a platform that is busier than this is no reason to hang.
_VALIDATION_SECONDS = 10.0


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the file. May be repeated.",
)
@click.option("-w", "--watch", "follow", is_flag=True, help="Follow the job to its end.")
@click.option("--request-id", help="Repeating a submission with the same id makes one job only.")
@click.option("--validate-only", is_flag=True, help="Check everything, create nothing.")
@click.option(
    "--dry-run", is_flag=True, help="Show memory, time, nodes and place in the queue; create nothing."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the job as JSON; with --watch a line per update."
)
@click.pass_context
def submit(
    ctx: click.Context,
    file: Path,
    overrides: tuple[str, ...],
    follow: bool,
    request_id: str | None,
    validate_only: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Submit the fine-tuning job described in FILE (YAML; `-` reads standard input).

    Every mistake of the file is named at once, with its line and what to do. The command waits until the
    platform has checked the base model and the dataset too, so exit code 0 means that the job is queued.

    \b
    Example of a file:
      experiment: support-bot
      base_model: smollm2-135m-instruct
      dataset: support-chat
      adapter: {lora: {r: 8}}
      training: {num_epochs: 3, learning_rate: 5e-4}
      sample_prompts: ["How do I reset my password?"]

    \b
    Examples:
      tunesmith submit job.yaml --watch
      tunesmith submit job.yaml -s training.learning_rate=1e-4 -s experiment=lower-lr
      tunesmith submit job.yaml --dry-run
    """
    from tunesmith import jobfile

    content = jobfile.loads(sys.stdin.read(), "standard input") if str(file) == "-" else jobfile.read(file)
    spec = jobfile.parse(content, str(file), overrides)
    with connect(ctx) as client:
        if dry_run:
            from tunesmith.cli.quote import print_quote

            return print_quote(client.jobs.quote(spec), as_json)
        job = client.jobs.submit(spec, request_id=request_id, validate_only=validate_only)
        if validate_only:
            _print_checked(job, as_json)
            return 0
        if follow:
            from tunesmith.cli.follow import follow_job

            return follow_job(job, as_json)
        return await_validation(job, as_json)


def _print_checked(job: Job[Sync], as_json: bool) -> None:
    if as_json:
        print_json(job.proto)
    else:
        console().print("[green]valid[/green]; nothing was created")


def await_validation(job: Job[Sync], as_json: bool) -> int:
    """Waits until the inputs of a new job are checked, prints it, and returns the exit code."""
    try:
        job.validated(timeout=_VALIDATION_SECONDS)
    except DeadlineExceeded:
        say("note:", "the job was accepted; its inputs are still being checked", "yellow")
    if as_json:
        print_json(job.proto)
    else:
        console().print(f"[bold]{job.display_name}[/bold]  {text.styled_state(job.proto)}")
        if not job.terminal:
            console(stderr=True).print(f"follow it with `tunesmith watch {job.display_name}`", style="dim")
    return _outcome(job)


def _outcome(job: Job[Sync]) -> int:
    from tunesmith.cli.follow import show_failure

    if not job.terminal or job.succeeded:
        return 0
    show_failure(job.proto)
    return JOB_FAILED


@click.command("list")
@click.option(
    "--state", "states", multiple=True, help="Only jobs in this state, such as running. Repeatable."
)
@click.option("--experiment", default="", help="Only jobs of this experiment.")
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Most jobs shown."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def list_jobs(
    ctx: click.Context, states: tuple[str, ...], experiment: str, limit: int, as_json: bool
) -> None:
    """List jobs, newest first.

    \b
    Examples:
      tunesmith list
      tunesmith list --state running --state queued
      tunesmith list --json | jq -r '.[].display_name'
    """
    with connect(ctx) as client:
        found = [job.proto for job in client.jobs.list(states=states, experiment=experiment, limit=limit)]
    if as_json:
        print_json(found)
        return
    print_table(
        ["JOB", "STATE", "DONE", "LOSS", "LEFT", "BASE MODEL", "DATASET", "CREATED"],
        [
            (
                job.display_name,
                text.styled_state(job),
                text.percent(job),
                text.loss(job.progress.loss) if job.progress.step else "-",
                _left(job),
                job.spec.base_model,
                job.spec.dataset,
                text.ago(job.create_time),
            )
            for job in found
        ],
        "no jobs; `tunesmith submit job.yaml` makes one",
    )


def _left(job: jobs_pb2.Job) -> str:
    if job.terminal or not job.progress.HasField("eta"):
        return "-"
    return text.duration(job.progress.eta.ToTimedelta().total_seconds())


@click.command()
@click.argument("job")
@click.option("--spec", "as_spec", is_flag=True, help="Print its job file, ready to be submitted again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(ctx: click.Context, job: str, as_spec: bool, as_json: bool) -> None:
    """Show JOB (its readable name or id): state, progress, result, attempts, answers before and after.

    \b
    Examples:
      tunesmith show support-bot-k3f9
      tunesmith show support-bot-k3f9 --spec > again.yaml
    """
    from tunesmith.cli.card import print_card

    with connect(ctx) as client:
        found = client.jobs.get(job)
        if as_json:
            print_json(found.proto)
        elif as_spec:
            from tunesmith import jobfile

            click.echo(jobfile.dumps(found.proto.spec), nl=False)
        else:
            print_card(found.proto, found.attempts())
