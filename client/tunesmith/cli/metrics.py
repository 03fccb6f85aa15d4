"""`tunesmith metrics`: the curves of a job as a table, a picture, numbers or a file."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from tunesmith.cli import text
from tunesmith.cli.output import print_data
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_json, print_table

if TYPE_CHECKING:
    from tunesmith.api.metrics.v1 import metrics_pb2
    from tunesmith.metrics import Curves, Series

_HEIGHT = 12
_KINDS = ("", "number", "histogram", "text", "picture")
_AXES = ("step", "relative-time", "wall-time", "tokens", "epoch")


class _JobFirst(click.Group):
    """A group in which a job stands where a command may stand: `metrics JOB` is `metrics show JOB`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["show", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_JobFirst, subcommand_metavar="JOB [KEY]... | export JOB FILE")
def metrics() -> None:
    """Show the curves of a job, or write them into a file.

    \b
    Examples:
      tunesmith metrics support-bot-k3f9
      tunesmith metrics support-bot-k3f9 train/loss eval/loss --smoothing 0.9
      tunesmith metrics support-bot-k3f9 train/loss --csv > loss.csv
      tunesmith metrics export support-bot-k3f9 curves.parquet
    """


@metrics.command()
@click.argument("job")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--plot", "form", flag_value="plot", help="Draw the curves (default on a terminal, with keys).")
@click.option("--csv", "form", flag_value="csv", help="Print every point as CSV (default into a pipe).")
@click.option("--json", "form", flag_value="json", help="Print a JSON array.")
@click.option(
    "--smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.0,
    help="Weight of what came before, such as 0.9.",
)  # fmt: skip
@click.option("--axis", type=click.Choice(_AXES), default="step", help="What stands below the curve.")
@click.option("--max-points", type=click.IntRange(0, 1_000_000), default=0, help="Reduce longer curves.")
@click.option("--from-step", type=int, default=0, help="First step.")
@click.option("--to-step", type=int, default=0, help="Last step.")
@click.pass_context
def show(
    ctx: click.Context,
    job: str,
    keys: tuple[str, ...],
    form: str | None,
    smoothing: float,
    axis: str,
    max_points: int,
    from_step: int,
    to_step: int,
) -> int:
    """List the metrics of JOB, or show the curves named by KEYS."""
    with connect(ctx) as client:
        if not keys and form in (None, "json"):
            _print_list(client.metrics.list(job), form == "json")
            return 0
        width = console().width
        if form is None:
            form = "plot" if sys.stdout.isatty() else "csv"
        curves = client.metrics.series(
            job,
            keys,
            max_points=max_points or (2 * width if form == "plot" else 0),
            smoothing=smoothing,
            axis=axis,
            min_step=from_step,
            max_step=to_step,
        )
        missing = [key for key in keys if key not in curves]
        if missing:
            known = [each.key for each in client.metrics.list(job)]
            raise click.ClickException(_unknown(missing[0], known))
    if form == "plot":
        _print_plots(curves, width, axis)
    elif form == "csv":
        _print_csv(curves)
    else:
        print_data([_as_dict(curve) for curve in curves.values()])
    return 0


def _unknown(key: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"the job has no points of {key} here; did you mean {near[0]}?"
    return f"the job has no points of {key} here; it has {', '.join(known) or 'none at all'}"


def _print_list(found: Any, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_table(
        ["METRIC", "LAST", "SMALLEST", "LARGEST", "STEP", "POINTS", "KIND"],
        [
            (
                escape(each.key),
                *_numbers(each),
                str(each.last_step),
                text.count(each.num_points),
                _KINDS[each.kind] if each.kind < len(_KINDS) else str(each.kind),
            )
            for each in found
        ],
        "no metrics yet",
    )


def _numbers(each: metrics_pb2.MetricSummary) -> tuple[str, str, str]:
    if each.kind > 1:
        return "-", "-", "-"
    return f"{each.last_value:.5g}", f"{each.min_value:.5g}", f"{each.max_value:.5g}"


def _print_plots(curves: Curves, width: int, axis: str) -> None:
    from tunesmith.cli.plot import plot

    for curve in curves.values():
        for line in plot(curve, width, _HEIGHT, axis):
            click.echo(line)


def _print_csv(curves: Curves) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("key", "step", "time", "value"))
    for curve in curves.values():
        key = curve.key if not curve.key.startswith(("=", "+", "-", "@")) else f"'{curve.key}"
        for step, time, value in zip(curve.steps, curve.times, curve.values, strict=True):
            writer.writerow((key, int(step), f"{time:.6f}", repr(float(value))))


def _as_dict(curve: Series) -> dict[str, Any]:
    """Returns a curve for JSON, which has no NaN: texts stand for it and for infinities, as in REST."""
    named = {"values": curve.values, "min_values": curve.min_values, "max_values": curve.max_values}
    columns = {name: [_finite(float(value)) for value in column] for name, column in named.items()}
    return {
        "key": curve.key,
        "steps": [int(step) for step in curve.steps],
        "times": [float(time) for time in curve.times],
        **columns,
        "places": [_finite(float(place)) for place in curve.places],
        "num_points": curve.num_points,
    }


def _finite(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


@metrics.command()
@click.argument("job")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["arrow", "parquet", "csv", "jsonl", "tensorboard"]),
    help="Default: as the name of the file ends; a folder receives a TensorBoard event file.",
)  # fmt: skip
@click.option("--key", "keys", multiple=True, help="Only this metric. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def export(
    ctx: click.Context, job: str, path: Path, form: str | None, keys: tuple[str, ...], as_json: bool
) -> None:
    """Write every point of JOB's curves into the file PATH.

    \b
    Examples:
      tunesmith metrics export support-bot-k3f9 curves.parquet
      tunesmith metrics export support-bot-k3f9 runs/support-bot-k3f9 --format tensorboard
    """
    with connect(ctx) as client:
        written = client.metrics.export(job, path, format=form or "", keys=keys)
    size = written.stat().st_size
    if as_json:
        print_data({"path": str(written), "size_bytes": size})
    else:
        console().print(f"{escape(str(written))}  {text.size(size)}")
