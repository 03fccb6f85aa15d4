"""`tunesmith pause | resume | cancel | checkpoint | fork | move | update | delete | explain`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.markup import escape

from tunesmith import names
from tunesmith.cli import text
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_json, print_table

if TYPE_CHECKING:
    from tunesmith.api.jobs.v1 import queue_pb2
    from tunesmith.faces import Sync
    from tunesmith.job import Job

F = TypeVar("F", bound=Callable[..., Any])
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?")
_UNIT_SECONDS = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_as_json = click.option("--json", "as_json", is_flag=True, help="Print the job as one JSON object.")


def _span(value: str) -> float:
    """Returns a time such as `90s` or `2h` in seconds."""
    match = _TIME.fullmatch(value.strip())
    if match is None:
        raise click.BadParameter(f"{value!r} is not a time; write it like 90s, 15m or 2h")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


def _time(name: str, help_text: str) -> Callable[[F], F]:
    return click.option(name, type=_span, metavar="TIME", help=help_text)


@click.command()
@click.argument("job")
@click.option("--latest", is_flag=True, help="End its processes at once and keep the last checkpoint.")
@_time("--deadline", "Longest time it may take, such as 30s. Default: the job's.")
@click.option("--reason", default="", help="Why, for people.")
@click.option("--wait", is_flag=True, help="Wait until the job rests.")
@_as_json
@click.pass_context
def pause(
    ctx: click.Context,
    job: str,
    latest: bool,
    deadline: float | None,
    reason: str,
    wait: bool,
    as_json: bool,
) -> None:
    """Let JOB rest and give its node back; `tunesmith resume` goes on from there.

    It writes a checkpoint first, so nothing is done twice. With --latest its processes end at once, and what
    was done since the last checkpoint is done again after the resume, with the same result.

    \b
    Examples:
      tunesmith pause support-bot-k3f9 --wait
      tunesmith pause support-bot-k3f9 --latest
    """
    with connect(ctx) as client:
        found = client.jobs.get(job).pause(latest=latest, deadline=deadline, reason=reason)
        if wait:
            found.reaches("paused")
        _print(found, as_json)


@click.command()
@click.argument("job")
@click.option(
    "--accept-drift",
    is_flag=True,
    help="Go on although libraries or hardware differ: recorded, no longer bit-identical.",
)
@click.option("--wait", is_flag=True, help="Wait until the job trains again.")
@_as_json
@click.pass_context
def resume(ctx: click.Context, job: str, accept_drift: bool, wait: bool, as_json: bool) -> None:
    """Queue JOB again after a pause. It goes on from its newest checkpoint, at the very step.

    \b
    Example:
      tunesmith resume support-bot-k3f9 --wait
    """
    with connect(ctx) as client:
        found = client.jobs.get(job).resume(accept_drift=accept_drift)
        if wait:
            found.reaches("running", "finalizing")
        _print(found, as_json)


@click.command()
@click.argument("job")
@click.option("--now", is_flag=True, help="Kill its processes at once, without a checkpoint.")
@click.option("--reason", default="", help="Why, for people.")
@click.option("--wait", is_flag=True, help="Wait until the job has ended.")
@_as_json
@click.pass_context
def cancel(ctx: click.Context, job: str, now: bool, reason: str, wait: bool, as_json: bool) -> None:
    """End JOB. It writes a checkpoint first, unless --now."""
    with connect(ctx) as client:
        found = client.jobs.get(job).cancel(now=now, reason=reason)
        if wait:
            found.wait()
        _print(found, as_json)


@click.command()
@click.argument("job")
@_as_json
@click.pass_context
def checkpoint(ctx: click.Context, job: str, as_json: bool) -> None:
    """Ask the running JOB for a durable checkpoint now; it goes on.

    `tunesmith checkpoints list JOB` shows it once it is stored.
    """
    with connect(ctx) as client:
        _print(client.jobs.get(job).checkpoint(), as_json)


@click.command()
@click.argument("job")
@click.option("--step", type=click.IntRange(min=0), help="Go on from this checkpoint. Default: the newest.")
@click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of the spec. Repeatable.",
)
@click.option("--accept-drift", is_flag=True, help="Go on although libraries or hardware differ.")
@click.option("-w", "--watch", "follow", is_flag=True, help="Follow the new job to its end.")
@click.option("--request-id", help="Repeating a fork with the same id makes one job only.")
@_as_json
@click.pass_context
def fork(
    ctx: click.Context,
    job: str,
    step: int | None,
    overrides: tuple[str, ...],
    accept_drift: bool,
    follow: bool,
    request_id: str | None,
    as_json: bool,
) -> int:
    """Make a new job that goes on from a checkpoint of JOB, running or finished.

    Without --set it ends with the same weights as JOB. Base model, method and adapter cannot be changed, for
    the checkpoint's weights fit no other.

    \b
    Examples:
      tunesmith fork support-bot-k3f9 -s training.learning_rate=1e-5
      tunesmith fork support-bot-k3f9 --step 400 -s training.num_epochs=5 --watch
    """
    from tunesmith.cli.jobs import await_validation

    with connect(ctx) as client:
        made = client.jobs.get(job).fork(
            step=step, overrides=overrides, accept_drift=accept_drift, request_id=request_id
        )
        if follow:
            from tunesmith.cli.follow import follow_job

            return follow_job(made, as_json)
        return await_validation(made, as_json)


@click.command()
@click.argument("job")
@click.argument("node")
@click.option("--wait", is_flag=True, help="Wait until it trains on NODE, or the move came to nothing.")
@_as_json
@click.pass_context
def move(ctx: click.Context, job: str, node: str, wait: bool, as_json: bool) -> int:
    """Take the running JOB to NODE.

    NODE fetches model, data and checkpoint first, while the job trains on; then it changes over at a step
    boundary. If NODE cannot, the job stays where it is.

    \b
    Example:
      tunesmith move support-bot-k3f9 gpu-box-2 --wait
    """
    with connect(ctx) as client:
        found = client.jobs.get(job).move(node)
        if wait:
            for update in found.watch():
                if not update.HasField("move"):
                    break
        _print(found, as_json)
        return 0 if not wait or _is_on(found, node) else 1


def _is_on(job: Job[Sync], node: str) -> bool:
    attempts = job.attempts()
    return bool(attempts) and names.last_part(node) in attempts[0].nodes


@click.command()
@click.argument("job")
@click.option("--priority", type=click.IntRange(-1000, 1000), help="Higher goes first.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Set a label; KEY= removes it.")
@_time("--queue-deadline", "Longest time from acceptance to the first start.")
@_time("--run-deadline", "Longest time in training, over all attempts.")
@_time("--stop-deadline", "Longest time a graceful stop may take.")
@_as_json
@click.pass_context
def update(
    ctx: click.Context,
    job: str,
    priority: int | None,
    labels: tuple[str, ...],
    queue_deadline: float | None,
    run_deadline: float | None,
    stop_deadline: float | None,
    as_json: bool,
) -> None:
    """Change priority, labels or deadlines of JOB; everything else needs a fork.

    \b
    Examples:
      tunesmith update support-bot-k3f9 --priority 10
      tunesmith update support-bot-k3f9 --label team=search --run-deadline 8h
    """
    pairs = dict(_pair(label) for label in labels)
    if not pairs and all(x is None for x in (priority, queue_deadline, run_deadline, stop_deadline)):
        raise click.UsageError("Nothing to change: give --priority, --label or a deadline.")
    with connect(ctx) as client:
        found = client.jobs.get(job).update(
            priority=priority,
            labels=pairs,
            queue_deadline=queue_deadline,
            run_deadline=run_deadline,
            stop_deadline=stop_deadline,
        )
        _print(found, as_json)


def _pair(label: str) -> tuple[str, str]:
    key, equals, value = label.partition("=")
    if not key or not equals:
        raise click.UsageError(f"The label {label!r} is not of the form KEY=VALUE.")
    return key, value


@click.command()
@click.argument("job")
@click.pass_context
def delete(ctx: click.Context, job: str) -> None:
    """Hide the finished JOB for good. Its metrics and logs are deleted, its model versions stay, and its name
    stays taken."""
    with connect(ctx) as client:
        client.jobs.get(job).delete()
    console().print(f"[bold]{escape(job)}[/bold]  deleted")


@click.command()
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def explain(ctx: click.Context, job: str, as_json: bool) -> None:
    """Say why JOB does not run: the rule that blocks it, each node's verdict, and the smallest change
    that would start it."""
    with connect(ctx) as client:
        found = client.jobs.get(job)
        answer = found.explain()
        if as_json:
            print_json(answer)
        else:
            _print_explanation(found, answer)


def _print_explanation(job: Job[Sync], answer: queue_pb2.ExplainJobResponse) -> None:
    out = console()
    out.print(f"[bold]{job.display_name}[/bold]  {text.styled_state(job.proto)}")
    if answer.rule:
        out.print(f"[yellow]{answer.rule}[/yellow]: {escape(answer.message)}")
    elif answer.message:
        out.print(escape(answer.message))
    if answer.queue_position:
        out.print(f"{answer.queue_position} jobs are before it in the queue")
    if answer.HasField("change"):
        out.print(f"[green]to start it:[/green] {escape(answer.change.text)}")
    if answer.nodes:
        rows = [
            (names.last_part(verdict.node), verdict.rule or "fits", escape(verdict.message))
            for verdict in answer.nodes
        ]
        print_table(["NODE", "VERDICT", "WHY"], rows, "no nodes")


def _print(job: Job[Sync], as_json: bool) -> None:
    if as_json:
        print_json(job.proto)
    else:
        console().print(f"[bold]{job.display_name}[/bold]  {text.styled_state(job.proto)}")
