"""What every command needs: the client of the command line, and its two consoles."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.client import Client


def connect(ctx: click.Context) -> Client:
    """Returns a client for the address, token and project of the command line."""
    # gRPC's core logs each lost connection to stderr; the commands say it in their own words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from tunesmith.client import Client

    given = ctx.find_root().obj
    return Client(given["address"], given["token"], given["project"], profile=given.get("profile"))


def console(*, stderr: bool = False) -> Console:
    """Returns the console for stdout (results) or stderr (what happens meanwhile)."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, emoji=False)
