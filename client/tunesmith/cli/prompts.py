"""`tunesmith prompts`: prompt templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import yaml
from rich.markup import escape

from tunesmith.api.registry.v1 import prompts_pb2
from tunesmith.cli import text
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_facts, print_json, print_table

_PARTS = ("system", "prompt", "completion")


@click.group()
def prompts() -> None:
    """Make, list and try prompt templates.

    A template makes a conversation of a row: its parts `system`, `prompt` and `completion` are Jinja over
    the row's columns. A job names it as prompt_template; training, evaluation and chat use the same one.

    \b
    Examples:
      tunesmith prompts create triage --prompt 'Label: {{ text }}' --completion '{{ label }}' --dataset mails
      tunesmith prompts render triage --dataset mails
    """


@prompts.command()
@click.argument("prompt_id")
@click.option("--system", default="", help="Jinja of the system message.")
@click.option("--prompt", default="", help="Jinja of what the user says.")
@click.option("--completion", default="", help="Jinja of what the model shall answer.")
@click.option("--file", "file", type=click.Path(path_type=Path), help="YAML with these three, instead.")
@click.option("--dataset", default="", help="Dataset whose columns must have every variable.")
@click.option("--description", default="", help="What it is, for people.")
@click.option("--json", "as_json", is_flag=True, help="Print the version as one JSON object.")
@click.pass_context
def create(
    ctx: click.Context,
    prompt_id: str,
    system: str,
    prompt: str,
    completion: str,
    file: Path | None,
    dataset: str,
    description: str,
    as_json: bool,
) -> None:
    """Make a version of the template PROMPT_ID. Versions never change; the same parts make none."""
    parts = _parts(file) if file else {"system": system, "prompt": prompt, "completion": completion}
    with connect(ctx) as client:
        made = client.prompts.create(prompt_id, dataset=dataset, description=description, **parts)
    if as_json:
        print_json(made.prompt_template)
        return
    template = made.prompt_template
    console().print(f"[bold]{template.prompt_id}@{template.version}[/bold]  {_variables(template)}")
    if made.unused_columns:
        unused = ", ".join(made.unused_columns)
        console(stderr=True).print(f"columns no part reads: {escape(unused)}", style="yellow")


@prompts.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def list_prompts(ctx: click.Context, as_json: bool) -> None:
    """List templates by id."""
    with connect(ctx) as client:
        found = list(client.prompts.list())
    if as_json:
        print_json(found)
        return
    print_table(
        ["TEMPLATE", "NEWEST", "READS", "MADE", "BY", "DESCRIPTION"],
        [
            (
                template.prompt_id,
                f"@{template.version}",
                escape(", ".join(template.variables)),
                text.ago(template.create_time),
                escape(template.creator),
                escape(template.description.partition("\n")[0]),
            )
            for template in found
        ],
        "no templates; `tunesmith prompts create ID --prompt ... --completion ...` makes one",
    )


@prompts.command()
@click.argument("template")
@click.option("--versions", "all_versions", is_flag=True, help="List all its versions.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of its versions.")
@click.pass_context
def show(ctx: click.Context, template: str, all_versions: bool, as_json: bool) -> None:
    """Show TEMPLATE, ID or ID@VERSION, in full."""
    with connect(ctx) as client:
        if all_versions:
            found = list(client.prompts.versions(template.partition("@")[0]))
        else:
            found = [client.prompts.get(template)]
    if as_json:
        print_json(found)
        return
    for each in found:
        console().print(f"[bold]{each.prompt_id}@{each.version}[/bold]  {_variables(each)}")
        print_facts((name, escape(getattr(each.parts, name))) for name in _PARTS)


@prompts.command()
@click.argument("template", required=False, default="")
@click.option("--file", "file", type=click.Path(path_type=Path), help="YAML with parts to try out instead.")
@click.option("--row", "row_json", default="", help="A row as a JSON object.")
@click.option("--dataset", default="", help="Dataset whose first rows are rendered, ID or ID@VERSION.")
@click.option("--rows", "num_rows", type=click.IntRange(1, 100), default=3, show_default=True)
@click.option("--base", "base_model", default="", help="Base model that shows what is learnt.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def render(
    ctx: click.Context,
    template: str,
    file: Path | None,
    row_json: str,
    dataset: str,
    num_rows: int,
    base_model: str,
    as_json: bool,
) -> None:
    """Show what TEMPLATE makes of rows, and which variables the rows lack."""
    with connect(ctx) as client:
        found = client.prompts.render(
            template,
            parts=_parts(file) if file else None,
            row=_row(row_json) if row_json else None,
            dataset=dataset,
            num_rows=num_rows,
            base_model=base_model,
        )
    if as_json:
        print_json(found)
        return
    out, err = console(), console(stderr=True)
    for item in found.rendered:
        out.print(f"[bold]row {item.row}[/bold]" if item.row else "[bold]the row[/bold]")
        for message in item.messages:
            out.print(f"[dim]{message.role}[/dim]  {escape(message.content)}", soft_wrap=True)
        if item.error:
            err.print(escape(item.error), style="red")
        if item.preview.num_tokens:
            preview = item.preview
            out.print(f"{preview.num_tokens:,} tokens, {preview.num_trained_tokens:,} learnt", style="dim")
    if found.missing:
        err.print(f"the rows lack: {escape(', '.join(found.missing))}", style="red")
    if found.unused_columns:
        err.print(f"columns no part reads: {escape(', '.join(found.unused_columns))}", style="yellow")


def _variables(template: prompts_pb2.PromptTemplate) -> str:
    return f"reads {escape(', '.join(template.variables)) or 'nothing'}"


def _parts(file: Path) -> dict[str, str]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"cannot read {file}: {error}", param_hint="--file") from None
    if not isinstance(found, dict) or not set(found) <= set(_PARTS):
        raise click.BadParameter(f"{file} holds {', '.join(_PARTS)} and nothing else", param_hint="--file")
    return {name: str(found.get(name) or "") for name in _PARTS}


def _row(given: str) -> dict[str, Any]:
    try:
        row = json.loads(given)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--row") from None
    if not isinstance(row, dict):
        raise click.BadParameter('write an object such as {"text": "..."}', param_hint="--row")
    return row
