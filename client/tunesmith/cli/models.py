"""`tunesmith models`: base models, models, versions, stages."""

from __future__ import annotations

import click
from rich.markup import escape

from tunesmith import names
from tunesmith.api.registry.v1 import models_pb2
from tunesmith.cli import exports, proofs, stages, text
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_facts, print_json, print_table
from tunesmith.cli.transfer import upload_bar


@click.group()
def models() -> None:
    """Base models, models and their versions.

    A job starts from a base model and registers a version of a model, written `model@3`.

    \b
    Examples:
      tunesmith models bases
      tunesmith models import ./SmolLM2-135M-Instruct
      tunesmith models versions support-bot
      tunesmith models stage support-bot@3 production
      tunesmith models lineage support-bot@production
      tunesmith models export support-bot@3 ./support-bot
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
        "no base models; `tunesmith models import FOLDER` enters one",
    )


@models.command()
@click.argument("name", metavar="BASE_MODEL")
@click.option("--batch-size", default=1, show_default=True, help="Rows a step that memory is told for.")
@click.option("--max-length", default=0, help="Tokens a row that memory is told for. Default 1,024.")
@click.option("--license", "license_", help="New licence.")
@click.option("--tag", "tags", multiple=True, help="Word for filters; those given replace all.")
@click.option("--language", "languages", multiple=True, help="Language; those given replace all.")
@click.option("--task", "tasks", multiple=True, help="Task; those given replace all.")
@click.option("--delete", is_flag=True, help="Delete it, if no version was made from it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def base(
    ctx: click.Context,
    name: str,
    batch_size: int,
    max_length: int,
    license_: str | None,
    tags: tuple[str, ...],
    languages: tuple[str, ...],
    tasks: tuple[str, ...],
    delete: bool,
    as_json: bool,
) -> None:
    """Show a base model and the memory it needs; change what is said of it, or delete it."""
    with connect(ctx) as client:
        if delete:
            client.models.delete_base(name)
            console().print(f"deleted {escape(name)}")
            return
        if license_ is not None or tags or languages or tasks:
            client.models.update_base(name, license=license_, tags=tags, languages=languages, tasks=tasks)
        answer = client.models.base(name, batch_size=batch_size, max_length=max_length)
    if as_json:
        print_json(answer)
        return
    found, needs = answer.base_model, answer.memory
    told = answer.HasField("memory")
    print_facts(
        [
            ("base model", found.base_model_id),
            ("architecture", escape(found.architecture)),
            ("parameters", text.count(found.num_parameters)),
            ("context", f"{found.context_length:,}" if found.context_length else ""),
            ("licence", escape(found.license)),
            ("languages", escape(" ".join(found.languages))),
            ("tasks", escape(" ".join(found.tasks))),
            ("tags", escape(" ".join(found.tags))),
            ("to load it", text.size(needs.load_bytes) if told else ""),
            ("to train LoRA", text.size(needs.lora_bytes) if told else ""),
            ("to train all", text.size(needs.full_bytes) if told else ""),
            ("counted with", f"{needs.batch_size} x {needs.max_length:,} tokens" if told else ""),
            ("digest", found.digest),
            ("source", escape(found.source)),
            *((key, escape(value)) for key, value in sorted(found.facts.items())),
            *(("doubtful", escape(warning)) for warning in found.warnings),
        ]
    )


@click.command("import")
@click.argument("source", metavar="FOLDER|FILE.gguf|hf:ORG/NAME[@REVISION]")
@click.option("--id", "base_model_id", default="", help="Id of the base model. Default: its source's name.")
@click.option("--source", "told", default="", help="Where it came from, for people. Default: SOURCE.")
@click.option("--license", "license_", default="", help="Licence, as SPDX id if there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print the base model as one JSON object.")
@click.pass_context
def import_base(
    ctx: click.Context, source: str, base_model_id: str, told: str, license_: str, as_json: bool
) -> None:
    """Enter a base model: a Hugging Face FOLDER, a GGUF file, or a repository of a hub.

    A folder holds config.json, model.safetensors and the tokenizer's files. Pickles, Python files and
    `auto_map` are refused, since they could run code; of a hub they are not even fetched. Files that are
    stored already are not sent again. A GGUF file is converted to bfloat16 safetensors on this machine, which
    needs `tunesmith[trainer]`. For a private repository of a hub set HF_TOKEN, for another hub HF_ENDPOINT.

    \b
    Examples:
      tunesmith models import ./SmolLM2-135M-Instruct
      tunesmith models import smollm2-135m-instruct-q8_0.gguf --id smollm2
      tunesmith models import hf:HuggingFaceTB/SmolLM2-135M-Instruct@main
    """
    with connect(ctx) as client, upload_bar(f"importing {source}") as on_progress:
        base = client.models.import_base(
            source, base_model_id, source=told, license=license_, on_progress=on_progress
        )
    if as_json:
        print_json(base)
        return
    console().print(
        f"[green]imported[/green] [bold]{base.base_model_id}[/bold]  {escape(base.architecture)}, "
        f"{text.count(base.num_parameters)} parameters, {text.size(base.size_bytes)}"
    )
    if left := base.facts.get("hub.left_out"):
        console().print(f"left out, since a loader could run it or needs it not: {escape(left)}", style="dim")
    for warning in base.warnings:
        console(stderr=True).print(f"[yellow]{escape(warning)}[/yellow]")


models.add_command(import_base)
# The name it had when only folders could be imported.
models.add_command(import_base, "import-base")


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
        ["VERSION", "STAGE", "ALIASES", "BASE MODEL", "METRICS", "SIZE", "JOB", "REGISTERED"],
        [
            (
                _short(version),
                _stage(version),
                " ".join(version.aliases) or "-",
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
            ("aliases", " ".join(version.aliases)),
            ("description", escape(version.description)),
            ("labels", escape(" ".join(f"{key}={value}" for key, value in sorted(version.labels.items())))),
            ("pinned", "yes" if version.pinned else ""),
            ("base model", names.last_part(version.base_model)),
            ("dataset", stages.short(version.dataset_version)),
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


def _short(version: models_pb2.ModelVersion) -> str:
    return stages.short(version.name)


def _stage(version: models_pb2.ModelVersion) -> str:
    return stages.styled(version.stage)


def _metrics(version: models_pb2.ModelVersion) -> str:
    return escape(" ".join(f"{key}={text.loss(value)}" for key, value in sorted(version.metrics.items())))


for _command in (*stages.COMMANDS, *proofs.COMMANDS, *exports.COMMANDS):
    models.add_command(_command)
