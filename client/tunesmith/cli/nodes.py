"""`tunesmith nodes`: the machines of the fleet."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from tunesmith import names
from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.cli import text
from tunesmith.cli.failure import say
from tunesmith.cli.moment import Moment
from tunesmith.cli.output import print_data
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_facts, print_json, print_table
from tunesmith.errors import TunesmithError

if TYPE_CHECKING:
    from tunesmith.client import Client
    from tunesmith.metrics import Series

_STATES = nodes_pb2.DESCRIPTOR.enum_types_by_name["NodeState"]
_SPARK_WIDTH = 40
_STYLES = {"READY": "green", "LOST": "red", "CORDONED": "yellow", "DRAINING": "yellow"}


@click.group()
def nodes() -> None:
    """List the machines of the fleet and what they run; close and open them.

    \b
    Examples:
      tunesmith nodes list
      tunesmith nodes show gpu-box-1
      tunesmith nodes history gpu-box-1 "gpu*/temperature_celsius" --since 2h
      tunesmith nodes drain gpu-box-1 --reason "new disk" --wait
    """


@nodes.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def list_nodes(ctx: click.Context, as_json: bool) -> None:
    """List nodes by name."""
    with connect(ctx) as client:
        found = list(client.nodes.list())
    if as_json:
        print_json(found)
        return
    print_table(
        ["NODE", "STATE", "SLOTS", "GPUS", "CPUS", "MEMORY", "LABELS"],
        [
            (
                node.node_id,
                _state(node),
                f"{len(node.jobs)}/{node.capacity.slots}",
                _gpus(node),
                str(node.capacity.num_cpus),
                text.size(node.capacity.memory_bytes),
                escape(_labels(node)),
            )
            for node in found
        ],
        "no nodes; `tunesmith up` starts one here, `tunesmith serve agent` on another machine",
    )


@nodes.command()
@click.argument("node")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(ctx: click.Context, node: str, as_json: bool) -> None:
    """Show one node, and what it measured in the last quarter of an hour."""
    with connect(ctx) as client:
        found = client.nodes.get(node)
        curves = {} if as_json else _recent(client, node)
    if as_json:
        print_json(found)
        return
    out = console()
    out.print(f"[bold]{found.node_id}[/bold]  {_state(found)}")
    print_facts(
        [
            ("slots", f"{len(found.jobs)} of {found.capacity.slots} in use"),
            ("jobs", ", ".join(names.last_part(job) for job in found.jobs)),
            ("gpus", _gpus(found)),
            ("cpus", str(found.capacity.num_cpus)),
            ("memory", text.size(found.capacity.memory_bytes)),
            ("labels", escape(_labels(found))),
            ("agent", found.agent_version),
            ("registered", text.ago(found.register_time)),
        ]
    )
    for condition in found.conditions:
        holds = condition.status == common_pb2.CONDITION_STATUS_TRUE
        good = holds != condition.type.startswith(("Fault/", "Cordoned"))
        mark = f"[{'green' if good else 'yellow'}]{'yes' if holds else 'no'}[/]"
        out.print(f"{escape(condition.type)}: {mark} {escape(condition.message or condition.reason)}")
    if curves:
        _print_curves(curves)


@nodes.command()
@click.argument("node")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option(
    "--since", type=Moment(), default="1h", show_default=True, help="15m, 2h, 30d, or a date and time."
)
@click.option("--points", type=click.IntRange(1, 100_000), default=600, show_default=True,
              help="Most points a curve; of more than these each stands for a bucket.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of curves.")
@click.pass_context
def history(
    ctx: click.Context,
    node: str,
    keys: tuple[str, ...],
    since: datetime | timedelta,
    points: int,
    as_json: bool,
) -> None:
    """Show what NODE measured of itself: all curves, or those of each KEY. A star means every GPU.

    \b
    Examples:
      tunesmith nodes history gpu-box-1
      tunesmith nodes history gpu-box-1 "gpu*/temperature_celsius" --since 2d
      tunesmith nodes history gpu-box-1 cpu/percent --since 30d --json
    """
    with connect(ctx) as client:
        found = client.nodes.series(node, *keys, since=since, max_points=points)
    if as_json:
        print_data([_record(curve) for curve in found.values()])
        return
    _print_curves(found)


def _record(curve: Series) -> dict[str, object]:
    return {
        "key": curve.key,
        "times": [int(step) for step in curve.steps],
        "values": [float(value) for value in curve.values],
        "min_values": [float(value) for value in curve.min_values],
        "max_values": [float(value) for value in curve.max_values],
    }


def _print_curves(curves: Mapping[str, Series]) -> None:
    rows = []
    for key, curve in curves.items():
        values = [float(value) for value in curve.values]
        lows = [float(value) for value in curve.min_values] or values
        highs = [float(value) for value in curve.max_values] or values
        shown = (values[-1], min(lows), max(highs))
        rows.append(
            (escape(key), *(_value(key, each) for each in shown), text.sparkline(values, _SPARK_WIDTH))
        )
    print_table(["KEY", "LAST", "LEAST", "MOST", ""], rows, "nothing was measured in this time")


def _value(key: str, value: float) -> str:
    if "bytes" in key:
        return text.size(value) + ("/s" if key.endswith("_per_second") else "")
    return f"{value:.4g}"


@nodes.command()
@click.argument("node")
@click.option("--reason", default="", help="Why, for people.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def cordon(ctx: click.Context, node: str, reason: str, as_json: bool) -> None:
    """Give NODE no new jobs; those it runs go on."""
    with connect(ctx) as client:
        _print_node(client.nodes.cordon(node, reason=reason), as_json)


@nodes.command()
@click.argument("node")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def uncordon(ctx: click.Context, node: str, as_json: bool) -> None:
    """Let NODE take jobs again after a cordon or drain."""
    with connect(ctx) as client:
        _print_node(client.nodes.uncordon(node), as_json)


@nodes.command()
@click.argument("node")
@click.option("--reason", default="", help="Why, for people.")
@click.option("--wait", is_flag=True, help="Wait until the node is empty.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def drain(ctx: click.Context, node: str, reason: str, wait: bool, as_json: bool) -> None:
    """Send the jobs of NODE away, each with a checkpoint, and give it no new ones."""
    with connect(ctx) as client:
        found = client.nodes.drain(node, reason=reason)
        if wait:
            found = client.nodes.emptied(node)
        _print_node(found, as_json)


def _recent(client: Client, node: str) -> Mapping[str, Series]:
    try:
        return client.nodes.series(node, since=timedelta(minutes=15), max_points=1000)
    except TunesmithError as error:  # what the node is can be told without it
        say("no measurements:", error.message, "yellow")
        return {}


def _print_node(node: nodes_pb2.Node, as_json: bool) -> None:
    if as_json:
        print_json(node)
    else:
        console().print(f"[bold]{node.node_id}[/bold]  {_state(node)}")


def _state(node: nodes_pb2.Node) -> str:
    name = names.short(_STATES, node.state)
    style = _STYLES.get(name, "default")
    return f"[{style}]{name}[/{style}]"


def _gpus(node: nodes_pb2.Node) -> str:
    models = [gpu.model for gpu in node.capacity.gpus]
    return ", ".join(f"{models.count(model)} x {model}" for model in dict.fromkeys(models)) or "none"


def _labels(node: nodes_pb2.Node) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(node.labels.items()))
