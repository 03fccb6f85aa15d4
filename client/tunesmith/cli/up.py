"""`tunesmith up | serve`: the platform itself, found by entry points, never imported by the client."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from tunesmith import profile
from tunesmith.cli.failure import USAGE, detail, say

_DATA_DIR = Path("~/.local/share/tunesmith")


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=_DATA_DIR,
    envvar="TUNESMITH_DATA_DIR",
    show_envvar=True,
    show_default=True,
    help="Where everything is kept.",
)
@click.option(
    "--port", default=7460, show_default=True, type=click.IntRange(0, 65535), help="Page and REST. 0: any."
)
@click.option(
    "--grpc-port", default=7461, show_default=True, type=click.IntRange(0, 65535), help="gRPC. 0: any."
)
@click.option("--no-agent", is_flag=True, help="Run no jobs on this machine.")
def up(data_dir: Path, port: int, grpc_port: int, no_agent: bool) -> int:
    """Start the whole platform on this machine, and stay until Ctrl-C.

    The first start makes a token for you and writes it, with the address, to your profile, so that every
    other command finds the platform by itself. Running jobs survive a restart.

    \b
    Examples:
      tunesmith up
      tunesmith up --data-dir /srv/tunesmith --no-agent
    """
    host = _host()
    if host is None:
        return USAGE
    code: int = host.up(data_dir.expanduser(), port, grpc_port, not no_agent, _announce)
    return code


def _announce(platform: Any) -> None:
    """Writes the profile and says where things are once the platform serves, and at first the token too."""
    http = f"http://{platform.http_address}"
    chosen = profile.Profile(platform.grpc_address, platform.admin_token, profile.DEFAULT_PROJECT, http)
    path = profile.save(chosen)
    click.echo(f"Tunesmith is up.  Page: {http}  gRPC: {platform.grpc_address}  Profile: {path}")
    click.echo(f"Events: {platform.nats_url}  (token: nats_token in secrets.json of the data folder)")
    if platform.first_start:
        click.echo(f"Sign in on the page with: {http}/#token={platform.admin_token}  (shown once)")
    else:
        click.echo(f"Sign in on the page with the token in {path}")


@click.command()
@click.argument("name")
def serve(name: str) -> int:
    """Run one service of a distributed platform: jobs, registry, metrics, gateway or agent.

    Its settings come from the environment: TUNESMITH_NATS_URL, TUNESMITH_DATABASE_URL and so on, or for one
    service only TUNESMITH_JOBS_DATABASE_URL.
    """
    known = sorted(entry_points(group="tunesmith.services").names)
    if name not in known:
        raise click.BadParameter(
            f"there is no service {name!r}; there are {', '.join(known)}", param_hint="NAME"
        )
    host = _host()
    if host is None:
        return USAGE
    code: int = host.serve(name)
    return code


def _host() -> ModuleType | None:
    """Returns the module that runs services, or says what to install."""
    try:
        return importlib.import_module("tunesmith_kit.host")
    except ModuleNotFoundError as error:
        say("error:", f"the platform's own packages are not installed ({error.name} is missing)", "red")
        detail("remedy:", "pip install 'tunesmith[server]'")
        return None
