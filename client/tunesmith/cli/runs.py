"""`tunesmith runs`: jobs by their results and settings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from tunesmith import names
from tunesmith.cli.output import print_data
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_table

if TYPE_CHECKING:
    from tunesmith.client import Client
    from tunesmith.runs import Run, RunTable

_COLUMNS = 6  # metrics and fields shown when nobody says which


@click.command()
@click.argument("filter", default="", metavar="[FILTER]")
@click.option("--sort", default="", metavar="NAMES", help="Such as `train/loss, created desc`.")
@click.option(
    "--columns", default="", metavar="NAMES", help="Metrics and fields to show, with commas between."
)
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Most runs shown."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def runs(ctx: click.Context, filter: str, sort: str, columns: str, limit: int, as_json: bool) -> None:
    """List the runs that meet FILTER, with the last values of their metrics and their settings.

    A filter compares metrics, `min(KEY)`, `max(KEY)`, fields of the job file, `name`, `state`, `experiment`,
    `created` and `label.KEY` by = != < <= > >= ~ in has; and, or, not and parentheses join.

    \b
    Examples:
      tunesmith runs "train/loss < 1.2 and adapter.lora.r = 16" --sort train/loss
      tunesmith runs "state = SUCCEEDED and label.team = search" --columns eval/loss,training.learning_rate
      tunesmith runs --json | jq '.[].metrics'
    """
    with connect(ctx) as client:
        found = client.runs.query(filter, order_by=sort, limit=limit)
        shown = [name.strip() for name in columns.split(",") if name.strip()]
        if not shown and not as_json:
            shown = _columns(client, f"{filter} {sort}")
    if as_json:
        print_data([_as_dict(run) for run in found])
        return
    _print(found, shown)


def _columns(client: Client, asked: str) -> list[str]:
    """What is shown when nobody says: what was asked for, losses, and the settings that differ."""
    known = client.runs.columns()
    metrics = [each.name for each in known.metrics]
    # Of the machine there are as many metrics as of the training, and rarely what runs are compared by.
    metrics.sort(key=lambda name: (name not in asked, "loss" not in name, name.startswith("system/")))
    differing = [each.name for each in known.config if each.num_values > 1]
    differing.sort(key=lambda name: name not in asked)
    return metrics[:_COLUMNS] + differing[:_COLUMNS]


def _print(found: RunTable, shown: list[str]) -> None:
    print_table(
        ["RUN", "STATE", *(escape(name.upper() if "/" not in name else name) for name in shown), "STEP"],
        [
            (
                run.name or names.last_part(run.job),
                run.state or "-",
                *(escape(_cell(run, name)) for name in shown),
                str(run.last_step),
            )
            for run in found
        ],
        "no run meets the filter" if not found.total else "no runs",
    )
    if found.total > len(found):
        note = f"{len(found)} of {found.total} runs; --limit shows more"
        console(stderr=True).print(note, style="dim")


def _cell(run: Run, name: str) -> str:
    if name in run.metrics:
        return f"{run.metrics[name]:.5g}"
    facts = {"experiment": run.experiment, "created": f"{run.created:%Y-%m-%d %H:%M}" if run.created else ""}
    if name in facts:
        return facts[name] or "-"
    if name.startswith("label."):
        return run.labels.get(name.removeprefix("label."), "-")
    return run.config.get(name, "-")


def _as_dict(run: Run) -> dict[str, Any]:
    """Returns a run for JSON; texts stand for NaN and infinities, as in REST."""
    return {
        "job": run.job,
        "name": run.name,
        "experiment": run.experiment,
        "state": run.state,
        "labels": dict(run.labels),
        "created": run.created.isoformat() if run.created else None,
        "metrics": {
            key: value if math.isfinite(value) else _word(value) for key, value in run.metrics.items()
        },
        "config": dict(run.config),
        "last_step": run.last_step,
        "num_points": run.num_points,
    }


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
