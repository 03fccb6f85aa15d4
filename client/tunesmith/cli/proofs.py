"""`tunesmith models`: cards, lineage, search; `tunesmith verify` and `reproduce`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.tree import Tree

from tunesmith import names, proof, reproduction
from tunesmith.api.registry.v1 import exports_pb2, lineage_pb2, search_pb2
from tunesmith.cli import text
from tunesmith.cli.output import print_data, print_item
from tunesmith.cli.session import connect, console
from tunesmith.cli.stages import short, styled
from tunesmith.cli.table import print_facts, print_json, print_table
from tunesmith.cli.transfer import upload_bar


@click.command()
@click.argument("name", metavar="MODEL[@VERSION]")
@click.option("--summary", help="One paragraph on what it is.")
@click.option("--intended-use", help="What it is meant for.")
@click.option("--limitations", help="What it is not good at.")
@click.option("--license", help="Licence, as SPDX id if there is one.")
@click.option("--tag", "tags", multiple=True, help="Word for filters; those given replace all.")
@click.option(
    "--language", "languages", multiple=True, help="Language, as ISO code; those given replace all."
)
@click.option("--task", "tasks", multiple=True, help="Task; those given replace all.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def card(ctx: click.Context, /, name: str, as_json: bool, **given: Any) -> None:
    """Print the card of a version in the form Hugging Face reads, or edit the sections people write.

    \b
    Examples:
      tunesmith models card bot@3 > README.md
      tunesmith models card bot --intended-use "Answers customers." --language de --tag support
    """
    edits = {key: value for key, value in given.items() if value}
    with connect(ctx) as client:
        model = name.partition("@")[0]
        if edits:
            sections = client.cards.edit(model, **edits)
            if as_json:
                print_json(sections)
            else:
                console().print(
                    f"edited the card of [bold]{escape(model)}[/bold]: {', '.join(sorted(edits))}"
                )
            return
        explicit = "@" in name or "/versions/" in name
        found = client.cards.get(name if explicit else client.models.get(name).latest.name)
    if as_json:
        print_json(found)
        return
    click.echo(found.markdown, nl=False)


@click.command()
@click.argument("name", metavar="MODEL@VERSION|NAME")
@click.option("--direction", default="both", type=click.Choice(["both", "upstream", "downstream"]))
@click.option("--depth", default=0, help="Steps to go. Default 8.")
@click.option("--json", "as_json", is_flag=True, help="Print nodes and edges as one JSON object.")
@click.pass_context
def lineage(ctx: click.Context, name: str, direction: str, depth: int, as_json: bool) -> None:
    """Show what a version, dataset version, job or evaluation came from and what came from it, as a tree.

    Everything but a model version is given by its resource name.
    """
    with connect(ctx) as client:
        graph = client.lineage.graph(name, direction=direction, depth=depth)
    if as_json:
        print_json(graph)
        return
    root = graph.nodes[0]
    nodes = {node.name: node for node in graph.nodes}
    out = console()
    for way, title in ((-1, "came from"), (1, "led to")):
        tree = Tree(f"{_node(root)} [dim]{title}[/dim]")
        if _branch(tree, root.name, way, nodes, graph.edges, {root.name}):
            out.print(tree)
    if graph.truncated:
        console(stderr=True).print("there is more; give --depth or start elsewhere", style="yellow")


def _node(node: lineage_pb2.LineageNode) -> str:
    facts = {key: value for key, value in node.facts.items() if key not in ("spec",) and "digest" not in key}
    shown = "  ".join(f"{key}={value}" for key, value in sorted(facts.items())[:4] if value)
    digest = f" [dim]{node.digest[:12]}[/dim]" if node.digest else ""
    return f"[cyan]{node.kind}[/cyan] [bold]{escape(node.label)}[/bold]{digest} {escape(shown)}".rstrip()


def _branch(
    tree: Tree,
    name: str,
    way: int,
    nodes: dict[str, lineage_pb2.LineageNode],
    edges: Iterable[lineage_pb2.LineageEdge],
    seen: set[str],
) -> bool:
    any_ = False
    for edge in edges:
        here, other = (edge.to_node, edge.from_node) if way < 0 else (edge.from_node, edge.to_node)
        if here != name or other in seen:
            continue
        any_ = True
        seen.add(other)
        child = tree.add(f"[dim]{edge.relation}[/dim] {_node(nodes[other])}")
        _branch(child, other, way, nodes, edges, seen)
    return any_


@click.command()
@click.argument("words", nargs=-1)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(["model", "base-model", "version"]))
@click.option("--base", "base_models", multiple=True, help="Made from this base model.")
@click.option("--language", "languages", multiple=True, help="With this language.")
@click.option("--task", "tasks", multiple=True, help="For this task.")
@click.option("--tag", "tags", multiple=True, help="With this tag; repeated: with all.")
@click.option("--stage", "stages", multiple=True, help="In this stage.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME<X", help="Comparison, as `eval/loss<1.5`.")
@click.option(
    "--order", "order_by", default="", help="relevance, create_time, name or metric:NAME; - turns it."
)
@click.option(
    "--by",
    "mode",
    type=click.Choice(["words", "meaning"]),
    help="How words are understood. Default: both ways.",
)
@click.option("--limit", default=20, show_default=True, help="Most results.")
@click.option("--json", "as_json", is_flag=True, help="Print results and facets as one JSON object.")
@click.pass_context
def search(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    mode: str | None,
    limit: int,
    as_json: bool,
    **filters: Any,
) -> None:
    """Find models, base models and versions by words and properties.

    Words are looked up in names, tags, tasks and cards (the beginning of a word counts). Where the registry
    has an encoder, models whose cards mean the same in other words are found too.

    \b
    Examples:
      tunesmith models search support --language de --metric 'exact_match>0.8'
      tunesmith models search helpdesk assistant for shoppers --by meaning
    """
    filters["mode"] = {"words": "full_text", "meaning": "meaning", None: ""}[mode]
    with connect(ctx) as client:
        answer = client.search.models(" ".join(words), page_size=limit, **filters)
    if as_json:
        print_json(answer)
        return
    _print_found(answer.results, "nothing was found")
    err = console(stderr=True)
    if answer.total > len(answer.results):
        err.print(f"{answer.total - len(answer.results):,} more", style="dim")
    if words:
        reason = f" ({escape(answer.mode_reason)})" if answer.mode_reason else ""
        err.print(f"[dim]searched by {escape(answer.mode)}{reason}[/dim]")
    for facet in answer.facets:
        if len(facet.values) > 1:
            shown = ", ".join(f"{escape(each.value)} {each.count}" for each in facet.values[:8])
            err.print(f"[dim]{facet.name}:[/dim] {shown}")


def _print_found(results: Iterable[search_pb2.FoundModel], empty: str) -> None:
    print_table(
        ["NAME", "STAGE", "BASE MODEL", "TASKS", "TAGS", "METRICS", "SUMMARY"],
        [
            (
                escape(short(each.name) if "/versions/" in each.name else names.last_part(each.name)),
                styled(each.stage) if each.stage else "-",
                escape(each.base_model),
                escape(" ".join(each.tasks)) or "-",
                escape(" ".join(each.tags)) or "-",
                escape(" ".join(f"{key}={text.loss(v)}" for key, v in sorted(each.metrics.items())[:3]))
                or "-",
                escape(text.one_line(each.summary)[:60]),
            )
            for each in results
        ],
        empty,
    )


@click.command()
@click.argument("model")
@click.option("--limit", default=10, show_default=True, help="Most results.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def similar(ctx: click.Context, model: str, limit: int, as_json: bool) -> None:
    """List models like MODEL, most alike first."""
    with connect(ctx) as client:
        found = client.search.similar(model, most=limit)
    if as_json:
        print_json(found)
        return
    _print_found(found, "no model is like it")


@click.command()
@click.argument("task", nargs=-1)
@click.option("--dataset", default="", help="Dataset it is for, as `id` or `id@version`.")
@click.option("--memory-gb", type=float, default=0.0, help="Memory of the device for training. Default: any.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def recommend(
    ctx: click.Context, task: tuple[str, ...], dataset: str, memory_gb: float, as_json: bool
) -> None:
    """Say which base models suit a TASK (in words) and a dataset, best first, and why."""
    with connect(ctx) as client:
        found = client.search.recommend(" ".join(task), dataset=dataset, memory_bytes=int(memory_gb * 1e9))
    if as_json:
        print_json(found)
        return
    print_table(
        ["BASE MODEL", "SCORE", "WHY"],
        [(e.base_model.base_model_id, f"{e.score:.2f}", escape("; ".join(e.reasons))) for e in found],
        "no base model fits; `tunesmith models bases` lists what there is",
    )


@click.command()
@click.option("--run", "really", is_flag=True, help="Delete it. Without: only tell.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.pass_context
def gc(ctx: click.Context, really: bool, as_json: bool) -> None:
    """Tell which stored content nothing refers to any longer, and delete it with --run.

    Content younger than the grace period is always kept. Retention policies let archived versions go first.
    """
    last = exports_pb2.CollectGarbageResponse()
    with connect(ctx) as client:
        for told in client.exports.collect_garbage(dry_run=not really):
            last = told
    if as_json:
        print_json(last)
        return
    word = "deleted" if really else "would be deleted"
    print_facts(
        [
            (word, f"{last.num_deleted:,} contents, {text.size(last.bytes_deleted)}"),
            ("in use", f"{last.num_referenced:,}"),
            ("young, kept for now", f"{last.num_young:,}"),
            ("versions let go", ", ".join(short(name) for name in last.expired_versions)),
        ]
    )


@click.command()
@click.argument("what", metavar="MODEL@VERSION|FOLDER|TAR")
@click.option("--key", default="", help="Public key receipts must be signed with (offline), 64 hex digits.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each item that is damaged.")
@click.pass_context
def verify(ctx: click.Context, what: str, key: str, as_json: bool) -> None:
    """Hash a version and all it came from again, check manifests, receipts and signatures.

    Given a folder or archive that `tunesmith models export` wrote, it needs no server. Each item that is not
    as it was is named (exit 1).
    """
    place = Path(what)
    damaged = (
        _offline(place, key, as_json) if place.exists() and "@" not in what else _online(ctx, what, as_json)
    )
    if damaged:
        ctx.exit(1)


def _offline(place: Path, key: str, as_json: bool) -> int:
    num, damaged = 0, 0
    for item in proof.verify(place, key):
        num += 1
        if item.problem:
            damaged += 1
            _damage(as_json, item.path, item.problem, item.wanted, item.found)
    if not as_json:
        _verdict(num, damaged, "" if key else " (receipts fit the key beside them; --key tells whose it is)")
    return damaged


def _online(ctx: click.Context, what: str, as_json: bool) -> int:
    last = lineage_pb2.VerifyModelVersionResponse()
    with connect(ctx) as client, upload_bar(f"verifying {what}") as on_progress:
        for last in client.lineage.verify(what):
            on_progress(last.bytes_done, last.bytes_total)
            item = last.item
            if last.HasField("item") and not item.intact:
                where = f"{item.resource} {item.path}".strip()
                _damage(as_json, where, item.message, item.wanted, item.found)
    if not as_json:
        _verdict(last.num_items, last.num_damaged, "")
    return int(last.num_damaged)


def _damage(as_json: bool, where: str, problem: str, wanted: str, found: str) -> None:
    if as_json:
        line = {"item": where, "problem": problem, "wanted": wanted, "found": found}
        print_item(line)
        return
    console().print(f"[red]damaged[/red] [bold]{escape(where)}[/bold]: {escape(problem)}")
    console().print(f"  wanted {escape(wanted)}\n  found  {escape(found) or 'nothing'}", style="dim")


def _verdict(num: int, damaged: int, more: str) -> None:
    if damaged:
        console().print(f"[red]{damaged} of {num} items are not as they were[/red]")
    else:
        console().print(f"[green]intact[/green]: {num} items checked{more}")


@click.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.option("--timeout", default=86_400.0, show_default=True, help="Seconds to wait for the job.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as one JSON object.")
@click.pass_context
def reproduce(ctx: click.Context, version: str, timeout: float, as_json: bool) -> None:
    """Run the job behind a version again, on the same data, and compare the result bit for bit.

    The result is registered under another model, `MODEL-reproduced`. What differs is named (exit 1).
    """
    with connect(ctx) as client:
        result = reproduction.reproduce(client, version, timeout)
    if as_json:
        print_data(result)
    elif result["equal"]:
        console().print(f"[green]equal[/green], bit for bit: {result['version']} and {result['reproduced']}")
    else:
        console().print(f"[red]not equal[/red]: {result['version']} and {result['reproduced']}")
        for line in result["differences"]:
            console().print(f"  {escape(line)}")
    if not result["equal"]:
        ctx.exit(1)


COMMANDS = (card, lineage, search, similar, recommend, gc)
