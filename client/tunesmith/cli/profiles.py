"""`tunesmith profile`: servers under names."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import Any

import click
from rich.markup import escape

from tunesmith import profile as files
from tunesmith.cli.output import print_data
from tunesmith.cli.session import console
from tunesmith.cli.table import print_facts, print_table


@click.group()
def profile() -> None:
    """Servers you use, each under a name: address, token, project.

    `default` is what `tunesmith up` writes. Tokens lie in files that only you can read, and are never
    printed.

    \b
    Examples:
      tunesmith profile set lab --address lab.example:7461 --project vision --token-stdin < token.txt
      tunesmith profile use lab
      tunesmith --profile default list
    """


@profile.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_profiles(as_json: bool) -> None:
    """List the profiles; the one in force has a star."""
    found = [_facts(name) for name in files.names()]
    if as_json:
        print_data(found)
        return
    print_table(
        ["PROFILE", "ADDRESS", "PROJECT", "TOKEN"],
        [
            (
                f"{one['name']} *" if one["active"] else one["name"],
                escape(one["address"]) or "-",
                escape(one["project"]) or "-",
                "set" if one["token_set"] else "-",
            )
            for one in found
        ],
        "no profiles; `tunesmith up` writes one, `tunesmith profile set NAME` too",
    )


@profile.command()
@click.argument("name")
def use(name: str) -> None:
    """Make NAME the profile in force, until TUNESMITH_PROFILE or --profile says otherwise."""
    files.use(name)
    console().print(f"[bold]{name}[/bold] is in force")


@profile.command("set")
@click.argument("name")
@click.option("--address", metavar="HOST:PORT", help="Where the server answers gRPC.")
@click.option("--project", help="The project that names without one belong to.")
@click.option("--http", metavar="URL", help="Where its page is, for people.")
@click.option("--token-stdin", is_flag=True, help="Read the token from standard input.")
def set_profile(
    name: str, address: str | None, project: str | None, http: str | None, token_stdin: bool
) -> None:
    """Make the profile NAME, or change what is given of it.

    A token is kept for its address: another address without a token begins without one.
    """
    before = files.load(name=name)
    changed = before
    if address is not None:
        files.check_address(address)
        changed = replace(changed, address=address, token=before.token if address == before.address else "")
    if project is not None:
        changed = replace(changed, project=project)
    if http is not None:
        changed = replace(changed, http=http)
    if token_stdin:
        changed = replace(changed, token=_read_token())
    files.save(changed, name=name)
    console().print(f"[bold]{name}[/bold] is written")


def _read_token() -> str:
    if sys.stdin.isatty():
        given: str = click.prompt("Token", hide_input=True, err=True)
    else:
        given = sys.stdin.readline()
    token = given.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise click.UsageError("the first line of standard input is no token")
    return token


@profile.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str | None, as_json: bool) -> None:
    """Show the profile NAME, or the one in force. Whether it has a token is said, never which."""
    chosen = name or files.chosen()
    files.existing(chosen)
    facts = _facts(chosen)
    if as_json:
        print_data(facts)
        return
    print_facts(
        [
            ("profile", chosen + (" (in force)" if facts["active"] else "")),
            ("address", escape(facts["address"])),
            ("project", escape(facts["project"])),
            ("page", escape(facts["http"])),
            ("token", "set" if facts["token_set"] else "none"),
        ]
    )


@profile.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the profile NAME, and its token with it."""
    files.remove(name)
    console().print(f"[bold]{name}[/bold] is removed")


def _facts(name: str) -> dict[str, Any]:
    """What may be said of a profile."""
    facts = asdict(files.load(name=name))
    token = facts.pop("token")
    return {"name": name, **facts, "token_set": bool(token), "active": name == files.chosen()}
