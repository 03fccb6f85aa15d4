"""`tunesmith attempts | events | checkpoints`: what happened to a job, and what it left."""

from __future__ import annotations

from pathlib import Path

import click
from google.protobuf.message import Message
from rich.markup import escape

from tunesmith import names
from tunesmith.api.jobs.v1 import events_pb2, state_pb2
from tunesmith.cli import text
from tunesmith.cli.card import print_attempts
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_json, print_table
from tunesmith.cli.transfer import upload_bar

_STATES = state_pb2.DESCRIPTOR.enum_types_by_name["JobState"]
_REASONS = state_pb2.DESCRIPTOR.enum_types_by_name["StateReason"]
_ATTEMPT_STATES = state_pb2.DESCRIPTOR.enum_types_by_name["AttemptState"]
_array = click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")


@click.command()
@click.argument("job")
@_array
@click.pass_context
def attempts(ctx: click.Context, job: str, as_json: bool) -> None:
    """List the attempts of JOB, newest first: where each ran, what it went on from, why it ended."""
    with connect(ctx) as client:
        found = client.jobs.get(job).attempts()
    if as_json:
        print_json(found)
    else:
        print_attempts(found)


@click.command()
@click.argument("job")
@_array
@click.pass_context
def events(ctx: click.Context, job: str, as_json: bool) -> None:
    """List what happened to JOB, oldest first, and who caused it."""
    with connect(ctx) as client:
        found = list(client.jobs.get(job).events())
    if as_json:
        print_json(found)
        return
    print_table(
        ["TIME", "EVENT", "ATTEMPT", "WHAT", "BY"],
        [
            (
                text.clock(event.time),
                event.WhichOneof("event") or "?",
                str(event.epoch or "-"),
                escape(_what(event)),
                escape(event.actor),
            )
            for event in found
        ],
        "nothing has happened yet",
    )


def _what(event: events_pb2.JobEvent) -> str:
    kind = event.WhichOneof("event")
    if kind == "state_changed":
        return _change(event.state_changed)
    if kind == "attempt_state_changed":
        return names.short(_ATTEMPT_STATES, event.attempt_state_changed.to_state) + _why(
            event.attempt_state_changed
        )
    if kind in ("checkpoint_committed", "checkpoint_expired", "checkpoint_pinned"):
        return f"step {getattr(event, kind).checkpoint.step}"
    if kind == "move_requested":
        return f"to {event.move_requested.node}"
    if kind == "drifted":
        return "; ".join(event.drifted.drift)
    if kind == "stale_report_refused":
        return f"attempt {event.stale_report_refused.stale_epoch} on {event.stale_report_refused.node}"
    return ""


def _change(changed: events_pb2.JobStateChanged) -> str:
    reason = names.short(_REASONS, changed.reason)
    shown = f" ({reason})" if reason not in ("UNSPECIFIED", "NEW") else ""
    before, after = names.short(_STATES, changed.from_state), names.short(_STATES, changed.to_state)
    return f"{before} -> {after}{shown}{_why(changed)}"


def _why(changed: Message) -> str:
    failure: state_pb2.Failure = getattr(changed, "failure")  # noqa: B009  both kinds of change have it
    return f": {failure.reason}" if failure.reason else ""


@click.group()
def checkpoints() -> None:
    """List, keep, let go and download the checkpoints of a job.

    \b
    Examples:
      tunesmith checkpoints list support-bot-k3f9
      tunesmith checkpoints pin support-bot-k3f9 400
      tunesmith checkpoints download mnist-k3f9 ./mnist --step 400
    """


@checkpoints.command("list")
@click.argument("job")
@click.option("--all", "show_expired", is_flag=True, help="Also those the retention rules let go.")
@_array
@click.pass_context
def list_checkpoints(ctx: click.Context, job: str, show_expired: bool, as_json: bool) -> None:
    """List the checkpoints of JOB, newest first; each but an external run's can be forked."""
    with connect(ctx) as client:
        found = client.jobs.get(job).checkpoints(show_expired=show_expired)
    if as_json:
        print_json(found)
        return
    print_table(
        ["STEP", "ATTEMPT", "SIZE", "HELD OUT", "KEPT", "WHEN"],
        [
            (
                str(point.step),
                str(point.epoch),
                text.size(point.size_bytes),
                text.loss(point.eval_loss) if point.HasField("eval_loss") else "-",
                "expired" if point.expired else "pinned" if point.pinned else "yes",
                text.ago(point.create_time),
            )
            for point in found
        ],
        "no checkpoints; `tunesmith checkpoint JOB` asks a running job for one",
    )


@checkpoints.command()
@click.argument("job")
@click.argument("step", type=click.IntRange(min=0))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def pin(ctx: click.Context, job: str, step: int, as_json: bool) -> None:
    """Keep the checkpoint of JOB at STEP whatever the retention rules say."""
    _pin(ctx, job, step, unpin=False, as_json=as_json)


@checkpoints.command()
@click.argument("job")
@click.argument("step", type=click.IntRange(min=0))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def unpin(ctx: click.Context, job: str, step: int, as_json: bool) -> None:
    """Let the retention rules decide again about the checkpoint of JOB at STEP."""
    _pin(ctx, job, step, unpin=True, as_json=as_json)


@checkpoints.command("download")
@click.argument("job")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(min=0), help="Step. Default: the newest.")
@click.pass_context
def download_checkpoint(ctx: click.Context, job: str, folder: Path, step: int | None) -> None:
    """Write the files of a checkpoint of JOB into FOLDER. One broken off is gone on with."""
    with connect(ctx) as client, upload_bar(f"downloading into {folder.name}") as on_progress:
        client.jobs.get(job).download_checkpoint(folder, step, on_progress=on_progress)
    console().print(f"[green]downloaded[/green] {escape(str(folder))}")


def _pin(ctx: click.Context, job: str, step: int, unpin: bool, as_json: bool) -> None:
    with connect(ctx) as client:
        found = client.jobs.get(job).pin(step, unpin=unpin)
    if as_json:
        print_json(found)
    else:
        fate = "pinned" if found.pinned else "expired" if found.expired else "kept by the rules"
        console().print(f"step {found.step}  {fate}")
