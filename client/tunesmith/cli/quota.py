"""`tunesmith quota`: what a project may use of the fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tunesmith import names
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_facts, print_json

if TYPE_CHECKING:
    from tunesmith.api.jobs.v1 import queue_pb2

_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def quota() -> None:
    """Show and set what the project may use at once.

    \b
    Examples:
      tunesmith quota show
      tunesmith --project search quota set --max-running-jobs 20 --max-gpus 8
    """


@quota.command()
@_as_json
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Show the quota of the project and what it uses of it."""
    with connect(ctx) as client:
        _print(client.quotas.get(), as_json)


@quota.command("set")
@click.option("--max-running-jobs", type=int, help="Most jobs that hold nodes at once.")
@click.option("--max-gpus", type=int, help="Most GPUs in use at once.")
@click.option("--weight", type=float, help="Share beside other projects when nodes are scarce. Default 1.")
@_as_json
@click.pass_context
def set_quota(
    ctx: click.Context,
    max_running_jobs: int | None,
    max_gpus: int | None,
    weight: float | None,
    as_json: bool,
) -> None:
    """Set the quota of the project; needs an admin. What is left out has no limit.

    A quota below what is in use stops new starts; nothing is killed.
    """
    with connect(ctx) as client:
        _print(
            client.quotas.set(max_running_jobs=max_running_jobs, max_gpus=max_gpus, weight=weight), as_json
        )


def _print(found: queue_pb2.Quota, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    console().print(f"[bold]{names.last_part(found.name.removesuffix('/quota'))}[/bold]")
    jobs = f"of {found.max_running_jobs}" if found.HasField("max_running_jobs") else "(no limit)"
    gpus = f"of {found.max_gpus}" if found.HasField("max_gpus") else "(no limit)"
    print_facts(
        [
            ("running jobs", f"{found.running_jobs} {jobs}"),
            ("gpus", f"{found.gpus} {gpus}"),
            ("weight", f"{found.weight if found.HasField('weight') else 1:g}"),
        ]
    )
