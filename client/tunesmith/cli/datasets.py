"""`tunesmith datasets`: import, check, list. data.py adds what looks into versions and derives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from tunesmith import hub, names
from tunesmith.api.registry.v1 import datasets_pb2
from tunesmith.cli import text
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_json, print_table
from tunesmith.cli.transfer import import_bars


@click.group()
def datasets() -> None:
    """Import, check, look into and derive datasets.

    A file is JSONL, JSON, CSV, TSV, Parquet, Arrow or text, also as .gz or .zst. A row is a conversation
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, a pair such
    as prompt and completion, a preference (prompt, chosen, rejected), a plain {"text": "..."}, a text with
    a label, or a record of any columns (--as record) that a prompt template renders. Every import makes a
    version; the same content makes none. A version is named ID (the newest) or ID@VERSION.

    \b
    Examples:
      tunesmith datasets check chat.jsonl
      tunesmith datasets import chat.jsonl --id support-chat
      tunesmith datasets stats support-chat --base smollm2-135m
      tunesmith datasets preview support-chat --base smollm2-135m
      tunesmith datasets split support-chat train=0.9 held-out=0.1
    """


@datasets.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def list_datasets(ctx: click.Context, as_json: bool) -> None:
    """List datasets by id."""
    with connect(ctx) as client:
        found = list(client.datasets.list())
    if as_json:
        print_json(found)
        return
    print_table(
        ["DATASET", "NEWEST", "ROWS", "SIZE", "FORM", "IMPORTED", "DESCRIPTION"],
        [
            (
                dataset.dataset_id,
                f"@{dataset.latest.version}",
                f"{dataset.latest.num_rows:,}",
                text.size(dataset.latest.size_bytes),
                dataset.latest.row_format,
                text.ago(dataset.latest.create_time),
                escape(dataset.description.partition("\n")[0]),
            )
            for dataset in found
        ],
        "no datasets; `tunesmith datasets import FILE --id NAME` makes one",
    )


@datasets.command()
@click.argument("dataset")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of its versions.")
@click.pass_context
def show(ctx: click.Context, dataset: str, as_json: bool) -> None:
    """Show a dataset and its versions."""
    with connect(ctx) as client:
        found = client.datasets.get(dataset)
        versions = list(client.datasets.versions(dataset))
    if as_json:
        print_json(versions)
        return
    console().print(f"[bold]{found.dataset_id}[/bold]  {escape(found.description)}")
    print_table(
        ["VERSION", "ROWS", "SIZE", "FORM", "DIGEST", "SOURCE", "BY", "IMPORTED"],
        [
            (
                f"{found.dataset_id}@{version.version}",
                f"{version.num_rows:,}",
                text.size(version.size_bytes),
                version.row_format,
                version.digest[:12],
                escape(version.source),
                escape(version.creator),
                text.ago(version.create_time),
            )
            for version in versions
        ],
        "no versions",
    )


_SHAPES = click.Choice(["messages", "preference", "text", "classification", "record"])
_FORMATS = click.Choice(
    ["jsonl", "json", "csv", "tsv", "parquet", "arrow", "text_lines", "text_paragraphs"], case_sensitive=False
)


def _reading(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say how a source is read."""
    for option in (
        click.option("--format", "file_format", type=_FORMATS, help="Format. Default: found out."),
        click.option("--as", "row_format", type=_SHAPES, help="Shape of the rows. Default: found out."),
        click.option(
            "--map", "mapped", multiple=True, metavar="NAME=COLUMN",
            help="Which column holds what, for example prompt=question_text. May be repeated.",
        ),
        click.option("--files", default="", help="Parquet files on the hub, such as 'data/train-*'."),
    ):  # fmt: skip
        command = option(command)
    return command


@datasets.command("import")
@click.argument("source")
@click.option("--id", "dataset_id", help="Id of the dataset. Default: the source's name.")
@click.option("--description", default="", help="What it is, for people.")
@click.option("--on-server", is_flag=True, help="SOURCE is a path below a folder the server shares.")
@_reading
@click.option("--json", "as_json", is_flag=True, help="Print the version as one JSON object.")
@click.pass_context
def import_file(
    ctx: click.Context, /, source: str, dataset_id: str | None, as_json: bool, **options: Any
) -> None:
    """Check every row of SOURCE and make a version of the dataset from it.

    SOURCE is a file here (it is uploaded; a broken upload goes on where it stopped), an address the server
    may fetch (https://...), a data set on the hub (hf:OWNER/NAME[@REVISION]), or with --on-server a path
    there. A row that cannot be used is an error that names its line and what to do; then nothing is kept.
    """
    answer = _run(ctx, source, dataset_id or _id(Path(source)), validate_only=False, **options)
    if as_json:
        print_json(answer.version)
        return
    version = answer.version
    _print_findings(answer.report)
    name = f"{names.last_part(version.name.rpartition('/versions/')[0])}@{version.version}"
    console().print(
        f"[green]imported[/green] [bold]{name}[/bold]  {version.num_rows:,} rows, "
        f"{text.size(version.size_bytes)}, form `{version.row_format}`"
    )


@datasets.command()
@click.argument("source")
@click.option("--on-server", is_flag=True, help="SOURCE is a path below a folder the server shares.")
@_reading
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.pass_context
def validate(ctx: click.Context, /, source: str, as_json: bool, **options: Any) -> None:
    """Check every row of SOURCE without keeping anything. Rows that cannot be used are an error (exit 1)."""
    report = _run(ctx, source, _id(Path(source)), validate_only=True, description="", **options).report
    if as_json:
        print_json(report)
    else:
        _print_findings(report)
        console().print(
            f"{report.num_rows:,} rows, {report.num_errors:,} errors, {report.num_warnings:,} warnings "
            f"({escape(report.detected)})"
        )
    if report.num_errors:
        ctx.exit(1)


datasets.add_command(validate, "check")


def _run(
    ctx: click.Context,
    source: str,
    dataset_id: str,
    *,
    validate_only: bool,
    description: str,
    on_server: bool,
    file_format: str | None,
    row_format: str | None,
    mapped: tuple[str, ...],
    files: str,
) -> datasets_pb2.ImportDatasetResponse:
    mapping = pairs(mapped, "--map")
    what = "checking" if validate_only else "importing"
    there = on_server or source.startswith(("http://", "https://", hub.PREFIX))
    with connect(ctx) as client, import_bars(f"{what} {source}") as (on_progress, on_import):
        if there:
            return client.datasets.import_from(
                source, dataset_id, description=description, validate_only=validate_only,
                files=files, on_import=on_import, format=file_format or "",
                row_format=row_format or "", mapping=mapping,
            )  # fmt: skip
        return client.datasets.import_file(
            source, dataset_id, description=description, validate_only=validate_only,
            on_progress=on_progress, on_import=on_import, format=file_format or "",
                row_format=row_format or "", mapping=mapping,
        )  # fmt: skip


def pairs(given: Iterable[str], option: str) -> dict[str, str]:
    """Reads NAME=VALUE pairs."""
    found = {}
    for item in given:
        name, sign, value = item.partition("=")
        if not (name and sign and value):
            raise click.BadParameter(f"write it as NAME=VALUE, not {item!r}", param_hint=option)
        found[name] = value
    return found


def _id(file: Path) -> str:
    """Returns an id made of a file's name: lower case, other characters as dashes."""
    stem = file.name.lower().removesuffix(".gz").removesuffix(".zst")
    stem = stem.rpartition(".")[0] or stem
    return "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in stem)


def _print_findings(report: datasets_pb2.ValidationReport) -> None:
    err = console(stderr=True)
    for finding in report.findings:
        err.print(f"[yellow]{escape(finding.field)}[/yellow]: {escape(finding.message)}")
        if finding.remedy:
            err.print(f"  {escape(finding.remedy)}", style="dim")
    if report.counts:
        listed = ", ".join(f"{count.reason} {count.count:,}" for count in report.counts)
        err.print(f"found: {listed}", style="dim")
