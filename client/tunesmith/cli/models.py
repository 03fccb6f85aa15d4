"""`tunesmith models`: base models, models, versions, stages."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from tunesmith import names
from tunesmith.api.registry.v1 import models_pb2
from tunesmith.cli import text
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_facts, print_json, print_table
from tunesmith.cli.transfer import upload_bar

_STAGES = models_pb2.DESCRIPTOR.enum_types_by_name["ModelStage"]
_STYLES = {"NONE": "dim", "STAGING": "cyan", "PRODUCTION": "green", "ARCHIVED": "magenta"}


@click.group()
def models() -> None:
    """Base models, models and their versions.

    A job starts from a base model and registers a version of a model, written `model@3`.

    \b
    Examples:
      tunesmith models bases
      tunesmith models import-base ./SmolLM2-135M-Instruct --id smollm2-135m-instruct
      tunesmith models versions support-bot
      tunesmith models stage support-bot@3 production
    """


@models.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def bases(ctx: click.Context, as_json: bool) -> None:
    """List base models: what a job can start from."""
    with connect(ctx) as client:
        found = list(client.models.bases())
    if as_json:
        print_json(found)
        return
    print_table(
        ["BASE MODEL", "ARCHITECTURE", "PARAMETERS", "CONTEXT", "SIZE", "LICENSE", "IMPORTED"],
        [
            (
                base.base_model_id,
                escape(base.architecture),
                text.count(base.num_parameters),
                f"{base.context_length:,}" if base.context_length else "-",
                text.size(base.size_bytes),
                escape(base.license) or "-",
                text.ago(base.create_time),
            )
            for base in found
        ],
        "no base models; `tunesmith models import-base FOLDER --id NAME` enters one",
    )


@models.command("import-base")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--id", "base_model_id", help="Id of the base model. Default: the folder's name.")
@click.option("--source", default="", help="Where it came from, for people. Default: the folder.")
@click.option("--license", "license_", default="", help="Licence, as SPDX id if there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print the base model as one JSON object.")
@click.pass_context
def import_base(
    ctx: click.Context, folder: Path, base_model_id: str | None, source: str, license_: str, as_json: bool
) -> None:
    """Upload a Hugging Face model FOLDER and enter it as a base model.

    The folder holds config.json, model.safetensors and the tokenizer's files. Pickles, Python files and
    `auto_map` are refused, since they could run code. Files that are stored already are not sent again.
    """
    with connect(ctx) as client, upload_bar(f"uploading {folder.name}") as on_progress:
        base = client.models.import_base(
            folder,
            base_model_id or folder.resolve().name.lower(),
            source=source,
            license=license_,
            on_progress=on_progress,
        )
    if as_json:
        print_json(base)
        return
    console().print(
        f"[green]imported[/green] [bold]{base.base_model_id}[/bold]  {escape(base.architecture)}, "
        f"{text.count(base.num_parameters)} parameters, {text.size(base.size_bytes)}"
    )


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def list_models(ctx: click.Context, as_json: bool) -> None:
    """List models by id."""
    with connect(ctx) as client:
        found = list(client.models.list())
    if as_json:
        print_json(found)
        return
    print_table(
        ["MODEL", "NEWEST", "PRODUCTION", "BASE MODEL", "METRICS", "REGISTERED"],
        [
            (
                model.model_id,
                f"@{model.latest.version}",
                f"@{model.production.version}" if model.HasField("production") else "-",
                names.last_part(model.latest.base_model),
                _metrics(model.latest),
                text.ago(model.latest.create_time),
            )
            for model in found
        ],
        "no models; every job that succeeds registers a version of one",
    )


@models.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def versions(ctx: click.Context, model: str, as_json: bool) -> None:
    """List the versions of MODEL, newest first."""
    with connect(ctx) as client:
        found = list(client.models.versions(model))
    if as_json:
        print_json(found)
        return
    print_table(
        ["VERSION", "STAGE", "BASE MODEL", "METRICS", "SIZE", "JOB", "REGISTERED"],
        [
            (
                _short(version),
                _stage(version),
                names.last_part(version.base_model),
                _metrics(version),
                text.size(version.size_bytes),
                names.last_part(version.job),
                text.ago(version.create_time),
            )
            for version in found
        ],
        "no versions",
    )


@models.command()
@click.argument("name", metavar="MODEL[@VERSION]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show a version of a model; without a number the newest."""
    with connect(ctx) as client:
        explicit = "@" in name or "/versions/" in name
        version = client.models.version(name) if explicit else client.models.get(name).latest
    if as_json:
        print_json(version)
        return
    console().print(f"[bold]{_short(version)}[/bold]  {_stage(version)}")
    print_facts(
        [
            ("base model", names.last_part(version.base_model)),
            ("dataset", _short_version(version.dataset_version)),
            ("job", names.last_part(version.job)),
            ("metrics", _metrics(version)),
            ("size", text.size(version.size_bytes)),
            ("digest", version.digest),
            ("registered", f"{text.clock(version.create_time)} ({text.ago(version.create_time)})"),
        ]
    )
    print_table(
        ["FILE", "SIZE", "SHA-256"],
        [
            (escape(file.path), text.size(file.size_bytes), file.sha256[:16])
            for file in version.manifest.files
        ],
        "no files",
    )


@models.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.argument("stage", type=click.Choice(names.choices(_STAGES)))
@click.option("--reason", default="", help="Why, for people.")
@click.option("--json", "as_json", is_flag=True, help="Print the version as one JSON object.")
@click.pass_context
def stage(ctx: click.Context, version: str, stage: str, reason: str, as_json: bool) -> None:
    """Move a version to another stage; the version that was in production before becomes archived."""
    with connect(ctx) as client:
        moved = client.models.set_stage(version, stage, reason=reason)
    if as_json:
        print_json(moved)
        return
    console().print(f"[bold]{_short(moved)}[/bold] is now {_stage(moved)}")


def _short(version: models_pb2.ModelVersion) -> str:
    return _short_version(version.name)


def _short_version(name: str) -> str:
    parent, _, number = name.rpartition("/versions/")
    return f"{names.last_part(parent)}@{number}" if parent else name


def _stage(version: models_pb2.ModelVersion) -> str:
    name = names.short(_STAGES, version.stage)
    style = _STYLES.get(name, "default")
    return f"[{style}]{name.capitalize()}[/{style}]"


def _metrics(version: models_pb2.ModelVersion) -> str:
    return escape(" ".join(f"{key}={text.loss(value)}" for key, value in sorted(version.metrics.items())))
