"""`tunesmith version` and `tunesmith completion`."""

from __future__ import annotations

import click

from tunesmith import __version__
from tunesmith.cli.output import print_data
from tunesmith.cli.session import connect
from tunesmith.errors import TunesmithError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--client", "client_only", is_flag=True, help="Ask no server.")
@click.pass_context
def version(ctx: click.Context, as_json: bool, client_only: bool) -> None:
    """Print the versions of client and server."""
    server, trouble = "", ""
    if not client_only:
        try:
            with connect(ctx) as client:
                server = client.fleet.server().version
        except TunesmithError as error:
            # No server is no failure here: the client's version was asked for as well.
            trouble = error.message
    if as_json:
        print_data({"client": __version__, "server": server or None})
        return
    click.echo(f"client {__version__}")
    if not client_only:
        click.echo(f"server {server}" if server else f"server unknown: {trouble}")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of your shell.

    \b
    bash:  echo 'eval "$(tunesmith completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(tunesmith completion zsh)"' >> ~/.zshrc
    fish:  tunesmith completion fish > ~/.config/fish/completions/tunesmith.fish
    """
    from click.shell_completion import get_completion_class

    from tunesmith.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None, "click knows these three shells"
    click.echo(kind(cli, {}, "tunesmith", "_TUNESMITH_COMPLETE").source())
