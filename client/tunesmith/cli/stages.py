"""`tunesmith models`: names, stages, approvals, policies and the end of versions."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from tunesmith import names
from tunesmith.api.registry.v1 import models_pb2, stages_pb2
from tunesmith.cli import text
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_facts, print_json, print_table
from tunesmith.cli.transfer import upload_bar
from tunesmith.errors import FailedPrecondition, InvalidArgument

STAGES = models_pb2.DESCRIPTOR.enum_types_by_name["ModelStage"]
_STATES = stages_pb2.DESCRIPTOR.enum_types_by_name["PromotionState"]
_STYLES = {"NONE": "dim", "STAGING": "cyan", "PRODUCTION": "green", "ARCHIVED": "magenta"}


def short(name: str) -> str:
    """Returns a version's resource name as `model@3`."""
    parent, _, number = name.rpartition("/versions/")
    return f"{names.last_part(parent)}@{number}" if parent else name


def styled(stage: int) -> str:
    """Returns a stage with its colour, as rich markup."""
    name = names.short(STAGES, stage)
    style = _STYLES.get(name, "default")
    return f"[{style}]{name.capitalize()}[/{style}]"


@click.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.argument("stage", type=click.Choice(names.choices(STAGES)))
@click.option("--reason", default="", help="Why, for people.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the version, or the request, as one JSON object."
)
@click.pass_context
def stage(ctx: click.Context, version: str, stage: str, reason: str, as_json: bool) -> None:
    """Move a version to another stage; the version that was in production before becomes archived.

    Where the policy wants a second person to approve, a request is made instead; `tunesmith models approve`
    decides it. A gate that is not passed is named with value and bound (exit 1).
    """
    with connect(ctx) as client:
        try:
            moved = client.models.set_stage(version, stage, reason=reason)
        except FailedPrecondition as error:
            if error.reason != "APPROVAL_REQUIRED":
                raise
            asked = client.versions.request_promotion(version, stage, reason=reason)
            if as_json:
                print_json(asked)
                return
            console().print(
                f"asked for [bold]{short(asked.version)}[/bold] to become {styled(asked.stage)}; "
                f"another person approves it with\n  tunesmith models approve {escape(_handle(asked))}"
            )
            return
    if as_json:
        print_json(moved)
        return
    console().print(f"[bold]{short(moved.name)}[/bold] is now {styled(moved.stage)}")


def _handle(promotion: stages_pb2.Promotion) -> str:
    """Returns what a request is called on the command line: `model/ID`."""
    parts = promotion.name.split("/")
    return f"{parts[3]}/{parts[5]}"


def _promotion(project: str, given: str) -> str:
    """Returns the resource name of a request written `model/ID` or in full."""
    if given.startswith("projects/"):
        return given
    model, _, promotion = given.partition("/")
    if not promotion:
        raise InvalidArgument(
            "NAME_INVALID",
            "a request is written MODEL/ID",
            field="request",
            value=given,
            remedy="`tunesmith models promotions MODEL` lists them",
        )
    return f"projects/{project}/models/{model}/promotions/{promotion}"


@click.command()
@click.argument("request", metavar="MODEL/REQUEST")
@click.option("--reason", default="", help="Why, for people.")
@click.option("--json", "as_json", is_flag=True, help="Print request and version as one JSON object.")
@click.pass_context
def approve(ctx: click.Context, request: str, reason: str, as_json: bool) -> None:
    """Approve that a version is moved. Who asked for it cannot."""
    with connect(ctx) as client:
        done = client.versions.approve(_promotion(client.profile.project, request), reason=reason)
    if as_json:
        print_json(done)
        return
    console().print(f"[bold]{short(done.version.name)}[/bold] is now {styled(done.version.stage)}")


@click.command()
@click.argument("request", metavar="MODEL/REQUEST")
@click.option("--reason", default="", help="Why, for people.")
@click.option("--json", "as_json", is_flag=True, help="Print the request as one JSON object.")
@click.pass_context
def reject(ctx: click.Context, request: str, reason: str, as_json: bool) -> None:
    """Reject that a version is moved: it stays where it is."""
    with connect(ctx) as client:
        done = client.versions.reject(_promotion(client.profile.project, request), reason=reason)
    if as_json:
        print_json(done)
        return
    console().print(f"rejected: [bold]{short(done.version)}[/bold] stays as it is")


@click.command()
@click.argument("model")
@click.option("--open", "only_open", is_flag=True, help="Only those that wait for a decision.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def promotions(ctx: click.Context, model: str, only_open: bool, as_json: bool) -> None:
    """List the requests to move versions of MODEL, newest first."""
    with connect(ctx) as client:
        found = list(client.versions.promotions(model, only_open=only_open))
    if as_json:
        print_json(found)
        return
    print_table(
        ["REQUEST", "VERSION", "STAGE", "STATE", "ASKED BY", "WHY", "DECIDED BY", "ASKED"],
        [
            (
                _handle(each),
                short(each.version),
                styled(each.stage),
                names.short(_STATES, each.state).lower(),
                escape(each.requester),
                escape(each.reason) or "-",
                escape(each.decider) or "-",
                text.ago(each.create_time),
            )
            for each in found
        ],
        "no requests",
    )


@click.command()
@click.argument("model")
@click.option("--reason", default="", help="Why, for people.")
@click.option("--json", "as_json", is_flag=True, help="Print both versions as one JSON object.")
@click.pass_context
def rollback(ctx: click.Context, model: str, reason: str, as_json: bool) -> None:
    """Make the version of MODEL that was in production before the present one production again."""
    with connect(ctx) as client:
        done = client.versions.roll_back(model, reason=reason)
    if as_json:
        print_json(done)
        return
    console().print(
        f"[bold]{short(done.version.name)}[/bold] is now {styled(done.version.stage)}, "
        f"{short(done.replaced.name)} {styled(done.replaced.stage)}"
    )


@click.command()
@click.argument("version", metavar="MODEL[@VERSION]")
@click.argument("alias")
@click.option("--delete", is_flag=True, help="Take the alias away.")
@click.option("--json", "as_json", is_flag=True, help="Print the version as one JSON object.")
@click.pass_context
def alias(ctx: click.Context, version: str, alias: str, delete: bool, as_json: bool) -> None:
    """Let ALIAS name a version, so that `model@ALIAS` stands for it everywhere; or take it away."""
    with connect(ctx) as client:
        model = version.partition("@")[0]
        changed = (
            client.versions.delete_alias(model, alias)
            if delete
            else client.versions.set_alias(version, alias)
        )
    if as_json:
        print_json(changed)
        return
    word = "no longer names" if delete else "names"
    console().print(f"[bold]{escape(alias)}[/bold] {word} {short(changed.name)}")


@click.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.option("--off", is_flag=True, help="Let the retention policy decide again.")
@click.option("--json", "as_json", is_flag=True, help="Print the version as one JSON object.")
@click.pass_context
def pin(ctx: click.Context, version: str, off: bool, as_json: bool) -> None:
    """Keep a version whatever the retention policy says."""
    with connect(ctx) as client:
        changed = client.versions.update(version, pinned=not off)
    if as_json:
        print_json(changed)
        return
    console().print(f"[bold]{short(changed.name)}[/bold] is {'pinned' if changed.pinned else 'not pinned'}")


@click.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.option("--description", help="What it is, for people.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label to set. Repeat for more.")
@click.option("--remove-label", "removed", multiple=True, metavar="KEY", help="Label to take away.")
@click.option("--json", "as_json", is_flag=True, help="Print the version as one JSON object.")
@click.pass_context
def describe(
    ctx: click.Context,
    version: str,
    description: str | None,
    labels: tuple[str, ...],
    removed: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say something of a version: a description, labels."""
    pairs = dict(_pair(label) for label in labels)
    with connect(ctx) as client:
        changed = client.versions.update(
            version, description=description, set_labels=pairs, remove_labels=removed
        )
    if as_json:
        print_json(changed)
        return
    console().print(f"[bold]{short(changed.name)}[/bold] {escape(changed.description)}")


def _pair(label: str) -> tuple[str, str]:
    key, found, value = label.partition("=")
    if not found:
        raise click.UsageError(f"a label is written KEY=VALUE, not {label}")
    return key, value


@click.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.option("--reason", default="", help="Why, for people.")
@click.pass_context
def delete(ctx: click.Context, version: str, reason: str) -> None:
    """Delete a version that is not in use. Its content goes with the next garbage collection."""
    with connect(ctx) as client:
        client.versions.delete(version, reason=reason)
    console().print(f"deleted {escape(version)}")


@click.command()
@click.argument("model", default="-")
@click.option(
    "--approval/--no-approval", default=None, help="Whether a second person must approve Production."
)
@click.option("--gate", "gates", multiple=True, metavar="DATASET:METRIC>=X",
              help="Gate before Production, with >= or <=; `METRIC~X`: at most X worse than Production. "
              "Repeat for more; the gates given replace all.")  # fmt: skip
@click.option("--no-gates", is_flag=True, help="Take all gates away.")
@click.option("--keep-archived", type=int, help="Archived versions kept; 0: all.")
@click.option("--archived-days", type=int, help="Days an archived version is kept; 0: for ever.")
@click.option(
    "--allow-code",
    "allowed",
    multiple=True,
    metavar="DIGEST",
    help="Base model that may name classes of its own (never run). Of the whole project; by an admin.",
)
@click.option("--forbid-code", "forbidden", multiple=True, metavar="DIGEST", help="Takes that back.")
@click.option("--json", "as_json", is_flag=True, help="Print the policy as one JSON object.")
@click.pass_context
def policy(
    ctx: click.Context,
    model: str,
    approval: bool | None,
    gates: tuple[str, ...],
    no_gates: bool,
    keep_archived: int | None,
    archived_days: int | None,
    allowed: tuple[str, ...],
    forbidden: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show or change what must hold before versions of MODEL rise; without MODEL of the whole project.

    \b
    Examples:
      tunesmith models policy bot --approval --gate 'support:exact_match>=0.8'
      tunesmith models policy bot --gate 'support:exact_match~0.01' --keep-archived 5
    """
    given = (approval, keep_archived, archived_days)
    changed = gates or no_gates or allowed or forbidden or any(value is not None for value in given)
    with connect(ctx) as client:
        found = client.versions.policy(model)
        if changed:
            found.approval_required = found.approval_required if approval is None else approval
            if gates or no_gates:
                del found.gates[:]
                found.gates.extend(_gate(gate) for gate in gates)
            found.keep_archived = found.keep_archived if keep_archived is None else keep_archived
            found.archived_days = found.archived_days if archived_days is None else archived_days
            codes = (set(found.remote_code_digests) | set(allowed)) - set(forbidden)
            found.remote_code_digests[:] = sorted(codes)
            found = client.versions.set_policy(found, model)
    if as_json:
        print_json(found)
        return
    print_facts(
        [
            ("holds for", "the whole project" if found.name.endswith("/-") else names.last_part(found.name)),
            ("approval", "by a second person" if found.approval_required else "not needed"),
            *(("gate", escape(_told(gate))) for gate in found.gates),
            ("archived", _kept(found)),
            *(("own classes of", digest) for digest in found.remote_code_digests),
        ]
    )


def _kept(policy: stages_pb2.ModelPolicy) -> str:
    parts = [f"the newest {policy.keep_archived} are kept"] if policy.keep_archived else []
    parts += [f"kept for {policy.archived_days} days"] if policy.archived_days else []
    return ", ".join(parts) or "all are kept"


def _gate(given: str) -> stages_pb2.Gate:
    for sign, field in ((">=", "at_least"), ("<=", "at_most"), ("~", "worse_by_at_most")):
        left, found, bound = given.partition(sign)
        if found:
            dataset, _, metric = left.rpartition(":")
            gate = stages_pb2.Gate(dataset=dataset.strip(), metric=metric.strip())
            try:
                setattr(gate, field, float(bound))
            except ValueError:
                break
            return gate
    raise click.UsageError(f"a gate is written DATASET:METRIC>=NUMBER, with >=, <= or ~, not {given}")


def _told(gate: stages_pb2.Gate) -> str:
    where = f"{gate.metric} on {gate.dataset or 'any dataset'}"
    parts = [f"at least {gate.at_least:g}"] if gate.HasField("at_least") else []
    parts += [f"at most {gate.at_most:g}"] if gate.HasField("at_most") else []
    if gate.HasField("worse_by_at_most"):
        parts.append(f"worse than Production by at most {gate.worse_by_at_most:g}")
    return f"{where}: {', '.join(parts)}"


@click.command()
@click.argument("version", metavar="MODEL@VERSION")
@click.option(
    "--stage", default="production", type=click.Choice(["staging", "production"]), help="On the way to."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def gates(ctx: click.Context, version: str, stage: str, as_json: bool) -> None:
    """Tell which gates a version passes. One that is not passed is an error (exit 1)."""
    with connect(ctx) as client:
        found = client.versions.gates(version, stage)
    if as_json:
        print_json(found)
    else:
        print_table(
            ["GATE", "RESULT", "WHY"],
            [
                (escape(_told(each.gate)), "[green]passed[/green]" if each.passed else "[red]failed[/red]",
                 escape(each.message))
                for each in found
            ],
            "no gates; `tunesmith models policy MODEL --gate` sets some",
        )  # fmt: skip
    if not all(each.passed for each in found):
        ctx.exit(1)


@click.command()
@click.argument("source", metavar="FOLDER|job:RUN[@STEP]")
@click.argument("model")
@click.option("--base", "base_model", required=True, help="Base model it was made from.")
@click.option("--dataset", default="", help="Dataset version it was made with, as `id@version`.")
@click.option("--description", default="", help="What it is, for people.")
@click.option("--json", "as_json", is_flag=True, help="Print the version as one JSON object.")
@click.pass_context
def register(
    ctx: click.Context,
    source: str,
    model: str,
    base_model: str,
    dataset: str,
    description: str,
    as_json: bool,
) -> None:
    """Register FOLDER, a PEFT adapter or a model in safetensors, as the next version of MODEL.

    Instead of a folder, a checkpoint that a program of your own saved: `job:RUN` is its newest,
    `job:RUN@STEP` that of a step. Its files are there already.

    \b
    Examples:
      tunesmith models register ./adapter support-bot --base smollm2-135m-instruct
      tunesmith models register job:mnist-k3f9@400 support-bot --base smollm2-135m-instruct
    """
    with connect(ctx) as client:
        if source.startswith("job:"):
            run, _, step = source.removeprefix("job:").partition("@")
            made = client.versions.register_checkpoint(
                model, run, _step(step), base_model=base_model, dataset=dataset, description=description
            )
        else:
            with upload_bar(f"uploading {Path(source).name}") as on_progress:
                made = client.versions.register(
                    model,
                    source,
                    base_model=base_model,
                    dataset=dataset,
                    description=description,
                    on_progress=on_progress,
                )
    if as_json:
        print_json(made)
        return
    console().print(
        f"[green]registered[/green] [bold]{short(made.name)}[/bold]  {text.size(made.size_bytes)}"
    )


def _step(text: str) -> int | None:
    if text and not text.isdecimal():
        raise InvalidArgument(
            "NAME_INVALID", f"{text} is no step", field="source", value=text,
            remedy="write job:RUN for the newest checkpoint, or job:RUN@STEP",
        )  # fmt: skip
    return int(text) if text else None


COMMANDS = (
    stage, approve, reject, promotions, rollback, alias, pin, describe, delete, policy, gates, register,
)  # fmt: skip
