"""`tunesmith datasets`: import, check, list."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from tunesmith import names
from tunesmith.api.registry.v1 import datasets_pb2
from tunesmith.cli import text
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_json, print_table
from tunesmith.cli.transfer import upload_bar


@click.group()
def datasets() -> None:
    """Import, check and list datasets.

    A dataset is a JSONL, CSV or Parquet file. A row is a conversation
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    or a plain {"text": "..."}. Every import makes a version; the same content makes none.

    \b
    Examples:
      tunesmith datasets validate chat.jsonl
      tunesmith datasets import chat.jsonl --id support-chat
      tunesmith datasets list
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


@datasets.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--id", "dataset_id", help="Id of the dataset. Default: the file's name.")
@click.option("--description", default="", help="What it is, for people.")
@click.option("--json", "as_json", is_flag=True, help="Print the version as one JSON object.")
@click.pass_context
def import_file(
    ctx: click.Context, file: Path, dataset_id: str | None, description: str, as_json: bool
) -> None:
    """Upload FILE, check every row, and make a version of the dataset from it.

    A row that cannot be used is an error that names its line and what to do; then nothing is kept.
    """
    with connect(ctx) as client, upload_bar(f"uploading {file.name}") as on_progress:
        answer = client.datasets.import_file(
            file, dataset_id or _id(file), description=description, on_progress=on_progress
        )
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
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.pass_context
def validate(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Check every row of FILE without keeping anything. Rows that cannot be used are an error (exit 1)."""
    with connect(ctx) as client, upload_bar(f"checking {file.name}") as on_progress:
        report = client.datasets.import_file(
            file, _id(file), validate_only=True, on_progress=on_progress
        ).report
    if as_json:
        print_json(report)
    else:
        _print_findings(report)
        console().print(
            f"{report.num_rows:,} rows, {report.num_errors:,} errors, {report.num_warnings:,} warnings"
        )
    if report.num_errors:
        ctx.exit(1)


def _id(file: Path) -> str:
    """Returns an id made of a file's name: lower case, other characters as dashes."""
    stem = file.stem.lower()
    return "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in stem)


def _print_findings(report: datasets_pb2.ValidationReport) -> None:
    err = console(stderr=True)
    for finding in report.findings:
        err.print(f"[yellow]{escape(finding.field)}[/yellow]: {escape(finding.message)}")
        if finding.remedy:
            err.print(f"  {escape(finding.remedy)}", style="dim")
