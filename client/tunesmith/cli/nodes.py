"""`tunesmith nodes`: the machines of the fleet."""

from __future__ import annotations

import click
from rich.markup import escape

from tunesmith import names
from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.cli import text
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_facts, print_json, print_table

_STATES = nodes_pb2.DESCRIPTOR.enum_types_by_name["NodeState"]
_STYLES = {"READY": "green", "LOST": "red", "CORDONED": "yellow", "DRAINING": "yellow"}


@click.group()
def nodes() -> None:
    """List the machines of the fleet and what they run; close and open them.

    \b
    Examples:
      tunesmith nodes list
      tunesmith nodes show gpu-box-1
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
    """Show one node."""
    with connect(ctx) as client:
        found = client.nodes.get(node)
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
        mark = "[green]yes[/green]" if holds else "[yellow]no[/yellow]"
        out.print(f"{condition.type}: {mark} {escape(condition.message or condition.reason)}")


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
