"""`tunesmith alerts`: rules, what they found, and who is told."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import click
from rich.markup import escape

from tunesmith import names
from tunesmith.api.metrics.v1 import rules_pb2
from tunesmith.cli import text
from tunesmith.cli.output import print_data
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_json, print_json_line, print_table

_ENUMS = rules_pb2.DESCRIPTOR.enum_types_by_name
_STYLES = {"FIRING": "red", "PENDING": "yellow", "RESOLVED": "green", "CRITICAL": "red", "FAILED": "red"}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Span(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 for checkers only
    """A duration such as 90s, 30m, 2h or 1d."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime.timedelta:
        if isinstance(value, datetime.timedelta):
            return value
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", str(value))
        if match is None:
            self.fail(f"{value!r} is no duration; write it like 30m, 2h or 1d", param, ctx)
        return datetime.timedelta(seconds=float(match[1]) * _UNITS[match[2]])


@click.group()
def alerts() -> None:
    """Watch over jobs and nodes: rules, the alerts they found, silences, and who is told.

    \b
    Examples:
      tunesmith alerts apply alerts.yaml
      tunesmith alerts list --state firing
      tunesmith alerts test alerts.yaml --rule nan-loss --since 7d
      tunesmith alerts silence --rule no-progress --for 2h --comment "new disks"
    """


@alerts.command("list")
@click.option("--state", "states", multiple=True, help="Only these: pending, firing or resolved.")
@click.option("--rule", default="", help="Only those of this rule.")
@click.option("--subject", default="", help="Only those about projects/…/jobs/… or nodes/….")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def list_alerts(
    ctx: click.Context, states: tuple[str, ...], rule: str, subject: str, limit: int, as_json: bool
) -> None:
    """List alerts, newest first."""
    found = []
    with connect(ctx) as client:
        for alert in client.alerts.list(states=states, rule=rule, subject=subject):
            found.append(alert)
            if len(found) == limit:
                break
    if as_json:
        print_json(found)
        return
    _print_alerts(found, "no alerts; `tunesmith alerts rules` lists what is watched over")


@alerts.command()
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON per change.")
@click.pass_context
def watch(ctx: click.Context, as_json: bool) -> None:
    """Print alerts as they change, until Ctrl-C; first those that are kept."""
    with connect(ctx) as client:
        out = console()
        for alert in client.alerts.watch():
            if as_json:
                print_json_line(alert)
            else:
                since = alert.firing_time if alert.HasField("firing_time") else alert.pending_time
                quiet = " (silenced)" if alert.silences else ""
                out.print(
                    f"{_word('AlertState', alert.state)}{quiet}  {text.ago(since)}  "
                    f"{names.last_part(alert.rule)}  {escape(alert.summary)}"
                )


@alerts.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def rules(ctx: click.Context, as_json: bool) -> None:
    """List the rules of the project."""
    with connect(ctx) as client:
        found = list(client.alerts.rules())
    if as_json:
        print_json(found)
        return
    print_table(
        ["RULE", "SEVERITY", "CONDITION", "CHANNELS", "DESCRIPTION"],
        [
            (
                names.last_part(rule.name) + (" (off)" if rule.disabled else ""),
                _word("AlertSeverity", rule.severity or rules_pb2.ALERT_SEVERITY_WARNING),
                rule.condition.WhichOneof("condition") or "",
                ", ".join(names.last_part(channel) for channel in rule.channels) or "-",
                escape(rule.description),
            )
            for rule in found
        ],
        "no rules; `tunesmith alerts apply FILE` makes those of a file",
    )


@alerts.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--prune", is_flag=True, help="Delete rules that FILE does not have.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def apply(ctx: click.Context, file: Path, prune: bool, dry_run: bool, as_json: bool) -> None:
    """Bring rules and channels in line with the YAML FILE; doing it again changes nothing."""

    with connect(ctx) as client:
        done = client.alerts.apply(file, prune=prune, dry_run=dry_run)
    if as_json:
        rows = [{"kind": d.kind, "name": d.name, "change": d.change, "fields": list(d.fields)} for d in done]
        print_data(rows)
        return
    styles = {"created": "green", "changed": "yellow", "deleted": "red", "unchanged": "dim"}
    print_table(
        ["KIND", "NAME", "CHANGE", "FIELDS"],
        [
            (d.kind, d.name, f"[{styles[d.change]}]{d.change}[/{styles[d.change]}]", ", ".join(d.fields))
            for d in done
        ],
        "the file has no rules",
    )
    if dry_run:
        console(stderr=True).print("nothing was changed: this was a dry run", style="dim")


@alerts.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--rule", "only", default="", help="Only this rule of FILE.")
@click.option("--since", type=_Span(), help="Only what was stored in this time, for example 7d.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def test(ctx: click.Context, file: Path, only: str, since: datetime.timedelta | None, as_json: bool) -> None:
    """Run the rules of the YAML FILE over what is stored, and list the alerts they would have made.

    Nobody is told, and nothing is changed.
    """
    from tunesmith import alertfile

    start = datetime.datetime.now(datetime.UTC) - since if since is not None else None
    found: list[rules_pb2.Alert] = []
    with connect(ctx) as client:
        said = alertfile.read(file, client.profile.project)
        if only and only not in said.rules:
            raise click.BadParameter(f"the file has no rule {only}; it has {', '.join(said.rules)}")
        for ident, rule in said.rules.items():
            if only in ("", ident):
                answer = client.alerts.test(rule, start=start)
                found += answer.alerts
                if not as_json:
                    console(stderr=True).print(
                        f"{ident}: {len(answer.alerts)} alerts in {answer.num_samples} points, lines and "
                        f"events of {answer.num_subjects} jobs or nodes",
                        style="dim",
                    )
    if as_json:
        print_json(found)
    else:
        _print_alerts(found, "no alerts: the rules would have found nothing")


@alerts.command()
@click.option("--for", "duration", type=_Span(), required=True, help="How long, for example 2h.")
@click.option("--rule", "of_rules", multiple=True, help="Only alerts of this rule; may be repeated.")
@click.option("--subject", "subjects", multiple=True, help="Only about projects/…/jobs/… or nodes/….")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only alerts with this label.")
@click.option("--comment", default="", help="Why, for people.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def silence(
    ctx: click.Context,
    duration: datetime.timedelta,
    of_rules: tuple[str, ...],
    subjects: tuple[str, ...],
    labels: tuple[str, ...],
    comment: str,
    as_json: bool,
) -> None:
    """Tell no channel about matching alerts for a while; without options none about any."""
    wrong = [label for label in labels if "=" not in label]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not of the form key=value", param_hint="--label")
    pairs = dict(label.split("=", 1) for label in labels)
    with connect(ctx) as client:
        made = client.alerts.silence(
            duration, rules=of_rules, subjects=subjects, labels=pairs, comment=comment
        )
    if as_json:
        print_json(made)
    else:
        ident = names.last_part(made.name)
        console().print(f"silence {ident}; `tunesmith alerts unsilence {ident}` ends it before its time")


@alerts.command()
@click.argument("silence")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def unsilence(ctx: click.Context, silence: str, as_json: bool) -> None:
    """End SILENCE now; firing alerts it held back are told at once."""
    with connect(ctx) as client:
        ended = client.alerts.end_silence(silence)
    if as_json:
        print_json(ended)
    else:
        console().print(f"silence {names.last_part(ended.name)} has ended")


@alerts.command()
@click.option("--all", "ended", is_flag=True, help="Those that have ended too.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def silences(ctx: click.Context, ended: bool, as_json: bool) -> None:
    """List silences, those that end last first."""
    with connect(ctx) as client:
        found = list(client.alerts.silences(ended=ended))
    if as_json:
        print_json(found)
        return
    print_table(
        ["SILENCE", "ENDS", "RULES", "SUBJECTS", "LABELS", "BY", "COMMENT"],
        [
            (
                names.last_part(each.name),
                each.end_time.ToJsonString(),
                ", ".join(names.last_part(rule) for rule in each.rules) or "all",
                escape(", ".join(each.subjects)) or "all",
                escape(" ".join(f"{key}={value}" for key, value in sorted(each.labels.items()))),
                escape(each.creator),
                escape(each.comment),
            )
            for each in found
        ],
        "no silences",
    )


@alerts.command()
@click.option("--test", "tried", default="", metavar="CHANNEL", help="Send a test notification through it.")
@click.option("--delete", "deleted", default="", metavar="CHANNEL", help="Delete it.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def channels(ctx: click.Context, tried: str, deleted: str, as_json: bool) -> int:
    """List where notifications go; try one, or delete one. `tunesmith alerts apply` makes them."""
    with connect(ctx) as client:
        if deleted:
            client.alerts.delete_channel(deleted)
        if tried:
            return _print_try(client.alerts.test_channel(tried), as_json)
        found = client.alerts.channels()
    if as_json:
        print_json(found)
        return 0
    print_table(
        ["CHANNEL", "TARGET", "RESOLVED TOO"],
        [
            (
                names.last_part(each.name),
                escape(each.webhook.url) if each.HasField("webhook") else "apprise",
                "yes" if each.send_resolved else "no",
            )
            for each in found
        ],
        "no channels; a file for `tunesmith alerts apply` may have some",
    )
    return 0


def _print_try(notification: rules_pb2.Notification, as_json: bool) -> int:
    if as_json:
        print_json(notification)
    else:
        state = _word("NotificationState", notification.delivery)
        console().print(f"{state} {escape(notification.problem)}")
    return 0 if notification.delivery == rules_pb2.NOTIFICATION_STATE_DELIVERED else 1


@alerts.command()
@click.option("--alert", default="", help="Only those of this alert.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def notifications(ctx: click.Context, alert: str, limit: int, as_json: bool) -> None:
    """List what channels were told, newest first, and what came of it."""
    found = []
    with connect(ctx) as client:
        for each in client.alerts.notifications(alert=alert):
            found.append(each)
            if len(found) == limit:
                break
    if as_json:
        print_json(found)
        return
    print_table(
        ["TIME", "CHANNEL", "TELLS", "DELIVERY", "TRIES", "PROBLEM"],
        [
            (
                text.ago(each.create_time),
                names.last_part(each.channel),
                _word("AlertState", each.state),
                _word("NotificationState", each.delivery),
                str(each.num_tries),
                escape(each.problem),
            )
            for each in found
        ],
        "no notifications",
    )


def _print_alerts(found: list[rules_pb2.Alert], empty: str) -> None:
    print_table(
        ["ALERT", "STATE", "SEVERITY", "RULE", "SINCE", "SUMMARY"],
        [
            (
                names.last_part(alert.name),
                _word("AlertState", alert.state) + (" (silenced)" if alert.silences else ""),
                _word("AlertSeverity", alert.severity),
                names.last_part(alert.rule),
                text.ago(alert.pending_time),
                escape(alert.summary),
            )
            for alert in found
        ],
        empty,
    )


def _word(enum: str, number: int) -> str:
    name = names.short(_ENUMS[enum], number)
    style = _STYLES.get(name, "default")
    return f"[{style}]{name}[/{style}]"
