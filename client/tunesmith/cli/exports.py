"""`tunesmith models`: taking versions away: export, push, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from tunesmith import gguf, merging
from tunesmith.cli.session import connect, console
from tunesmith.cli.stages import short
from tunesmith.cli.table import print_json
from tunesmith.cli.transfer import share_bar, upload_bar

if TYPE_CHECKING:
    from tunesmith.client import Client

_WEIGHTS = click.Choice(["float32", "bfloat16"])
_GGUF_WEIGHTS = click.Choice(["float32", "bfloat16", "float16", "q8_0"])


@click.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.argument("to", metavar="FOLDER|FILE", type=click.Path(path_type=Path))
@click.option("--format", "form", default="adapter", type=click.Choice(["adapter", "merged", "gguf", "tar"]),
              show_default=True, help="A folder with the files as they are, one with the adapter worked into "
              "the base model (by a job), that as one GGUF file, or the archive itself.")  # fmt: skip
@click.option("--weights", type=_GGUF_WEIGHTS, help="Of a merged model: float32 (default) or bfloat16. "
              "Of a GGUF file all four; default bfloat16.")  # fmt: skip
@click.pass_context
def export(ctx: click.Context, version: str, to: Path, form: str, weights: str | None) -> None:
    """Take a version away: its files with manifest, card, curves, receipts and public key.

    The folder loads with plain transformers and PEFT, a merged one with transformers alone, and `tunesmith
    verify FOLDER` checks it anywhere. An interrupted download goes on where it stopped. GGUF is written here,
    for models of Llama's architecture, and needs `tunesmith[trainer]`.

    \b
    Examples:
      tunesmith models export support-bot@3 ./support-bot
      tunesmith models export support-bot@production ./merged --format merged --weights bfloat16
      tunesmith models export support-bot@production ./support-bot.gguf --format gguf --weights q8_0
    """
    if form != "gguf" and weights in ("float16", "q8_0"):
        raise click.UsageError(f"--weights {weights} goes with --format gguf only")
    with connect(ctx) as client:
        if form == "gguf":
            gguf.need_writer(to)  # before a job is submitted for nothing
        # A merged model is the sum in 32 bits: rounded once, when the file is written.
        merge_as = {"merged": weights or "", "gguf": ""}
        wanted = _merged(client, version, "", merge_as[form]) if form in merge_as else version
        with upload_bar(f"downloading {version}") as on_progress:
            if form == "gguf":
                client.exports.save_gguf(wanted, to, weights=weights or "bfloat16", on_progress=on_progress)
            else:
                take = client.exports.download if form == "tar" else client.exports.save
                take(wanted, to, on_progress=on_progress)
    told = version if wanted == version else f"{version} as {short(wanted)}"
    console().print(f"[green]exported[/green] [bold]{escape(told)}[/bold] to {escape(str(to))}")


@click.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.argument("to", metavar="hf:ORG/NAME|URL")
@click.option("--public", is_flag=True, help="Of a repository that is made: everybody may read it.")
@click.pass_context
def push(ctx: click.Context, version: str, to: str, public: bool) -> None:
    """Copy a version to a Hugging Face hub, or to an address of an object store or disk.

    What is copied is what `tunesmith models export` writes. The hub's token comes from HF_TOKEN or its own
    file, the credentials of S3 from its usual settings; neither passes through the server. A repository of a
    hub that does not exist is made, private unless --public is given.

    \b
    Examples:
      tunesmith models push support-bot@3 hf:our-team/support-bot
      tunesmith models push support-bot@3 s3://models/support-bot/3
    """
    with connect(ctx) as client, upload_bar(f"pushing {version}") as on_progress:
        where = client.exports.push(version, to, public=public, on_progress=on_progress)
    console().print(f"[green]pushed[/green] [bold]{escape(version)}[/bold] to {escape(where)}")


@click.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.option("-m", "--model", default="", help="Model that receives it. Default: MODEL-merged.")
@click.option("--weights", type=_WEIGHTS, help="Default float32.")
@click.option("--json", "as_json", is_flag=True, help="Print the merged version as one JSON object.")
@click.pass_context
def merge(ctx: click.Context, version: str, model: str, weights: str | None, as_json: bool) -> None:
    """Work the adapter of a version into its base model: a new version, which transformers loads by itself.

    It is a job on a node. What was merged before with the same weights is not merged again.
    """
    with connect(ctx) as client:
        made = client.models.version(_merged(client, version, model, weights or ""))
    if as_json:
        print_json(made)
        return
    console().print(f"[green]merged[/green] [bold]{escape(version)}[/bold] into {escape(short(made.name))}")


def _merged(client: Client, version: str, model: str, weights: str) -> str:
    """Merges with a bar of the job's progress; returns the version's name."""
    wanted = client.models.version(version)
    into = model or merging.default_model(wanted)
    if known := merging.made_before(client, wanted, into, weights):
        return known
    job = merging.submit(client, wanted, into, weights)
    with share_bar(f"merging {version} ({job.proto.display_name})") as show:
        for update in job.watch():
            show(update.progress.step / (update.progress.total_steps or 1))
    return merging.result(job)


COMMANDS = (export, push, merge)
