"""`tunesmith sync`: sends what runs of one's own programs left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from tunesmith.cli.output import print_data
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_table
from tunesmith.cli.transfer import upload_bar
from tunesmith.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from tunesmith.parcel import Parcel
from tunesmith.sending import Sender
from tunesmith.spool import Spool, folders

if TYPE_CHECKING:
    from tunesmith.client import Client

_LEFT = ("open", "in use", "unreadable", "deleted", "refused")  # outcomes that leave the folder where it is


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option(
    "--end",
    type=click.Choice(["succeeded", "failed"]),
    help="How runs ended whose programs could not say so, as when they were killed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def sync(ctx: click.Context, folder: Path | None, end: str | None, as_json: bool) -> int:
    """Send what programs recorded with `tunesmith.init` while the server was away.

    FOLDER is a run's folder or one that holds several. Default: TUNESMITH_RUNS_DIR, else tunesmith-runs here.
    Each point and checkpoint is stored once, however often it is sent. The folder of a run that has ended is
    removed when the server has all of it.

    \b
    Examples:
      tunesmith sync
      tunesmith sync tunesmith-runs/01k… --end failed
    """
    chosen = folder or Path(os.environ.get("TUNESMITH_RUNS_DIR") or "tunesmith-runs")
    if folder is not None and not folder.is_dir():
        raise InvalidArgument(
            "FILE_UNREADABLE", f"there is no folder {folder}", field="folder", value=folder,
            remedy="name a run's folder, or one that holds several",
        )  # fmt: skip
    found = [_sync(ctx, each, end) for each in folders(chosen)]
    if as_json:
        print_data(found)
    else:
        print_table(
            ["RUN", "OUTCOME", "SENT", "FOLDER"],
            [
                (escape(one["run"]), one["outcome"], f"{one['sent_bytes']:,} B", escape(one["folder"]))
                for one in found
            ],
            f"nothing is left in {chosen}",
        )
        for one in found:
            if one["hint"]:
                console(stderr=True).print(escape(f"{one['run']}: {one['hint']}"), style="dim")
    return 1 if any(one["outcome"] in _LEFT for one in found) else 0


def _sync(ctx: click.Context, folder: Path, end: str | None) -> dict[str, Any]:
    """Sends one folder and tells what became of it."""
    told: dict[str, Any] = {"run": folder.name, "folder": str(folder), "sent_bytes": 0, "hint": ""}
    try:
        spool = Spool.open(folder)
    except InvalidArgument as error:
        return told | {"outcome": "unreadable", "hint": error.message}
    told["run"] = spool.identity.job_id
    root = ctx.find_root()
    root.obj = {**root.obj, "project": spool.identity.project}
    with spool.alone() as alone:
        if not alone:
            hint = "its program, or another `tunesmith sync`, still sends"
            return told | {"outcome": "in use", "hint": hint}
        with connect(ctx) as client:
            try:
                return told | _send(client, spool, end)
            except NotFound:
                hint = "the server knows no such run; remove the folder"
                return told | {"outcome": "deleted", "hint": hint}
            except (FailedPrecondition, InvalidArgument, AlreadyExists) as error:
                return told | {"outcome": "refused", "hint": f"{error.message}; {error.remedy}"}


def _send(client: Client, spool: Spool, end: str | None) -> dict[str, Any]:
    sender, before = Sender(client, spool), spool.sent.position
    if not spool.sent.epoch:
        sender.begin()
    while sender.send():
        pass
    told: dict[str, Any] = {"sent_bytes": spool.sent.position - before}
    for waiting in spool.parcels.waiting():
        parcel = Parcel.open(waiting)
        with upload_bar(f"checkpoint of step {parcel.facts.step}") as on_progress:
            sender.deliver(parcel, on_progress)
        told["sent_bytes"] += parcel.size_bytes
    said = spool.sent.end or ({"failed": end == "failed", "message": ""} if end else None)
    if said is None:
        hint = "its program did not say how it ended; `--end failed` or `--end succeeded` does"
        return told | {"run": _name(client, sender), "outcome": "open", "hint": hint}
    try:
        job = sender.finish(bool(said.get("failed")), str(said.get("message", "")))
        told |= {"run": job.display_name, "outcome": "ended"}
    except FailedPrecondition as error:
        if error.reason != "STALE_EPOCH":
            raise
        hint = "another program took the run up: its end counts"
        told |= {"run": _name(client, sender), "outcome": "sent", "hint": hint}
    spool.remove()
    return told


def _name(client: Client, sender: Sender) -> str:
    return client.jobs.get(sender.name).display_name
