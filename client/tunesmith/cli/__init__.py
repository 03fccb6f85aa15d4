"""The command line. A table of commands; each one's module is imported when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click


class _Entry(NamedTuple):
    section: str
    target: str
    help: str


# The help text stands here so that `tunesmith --help` imports no command.
COMMANDS = {
    "up": _Entry("Platform", "tunesmith.cli.up:up", "Start the whole platform on this machine, and stay."),
    "serve": _Entry("Platform", "tunesmith.cli.up:serve", "Run one service of a distributed platform."),
    "submit": _Entry("Jobs", "tunesmith.cli.jobs:submit", "Submit a fine-tuning job from a YAML file."),
    "list": _Entry("Jobs", "tunesmith.cli.jobs:list_jobs", "List jobs, newest first."),
    "show": _Entry("Jobs", "tunesmith.cli.jobs:show", "Show one job in full."),
    "watch": _Entry("Jobs", "tunesmith.cli.follow:watch", "Follow a job live: progress, loss, time left."),
    "logs": _Entry("Jobs", "tunesmith.cli.logs:logs", "Print, search or follow the log of a job."),
    "metrics": _Entry(
        "Jobs", "tunesmith.cli.metrics:metrics", "Show the curves of a job, or write them into a file."
    ),
    "runs": _Entry("Jobs", "tunesmith.cli.runs:runs", "List jobs by their results and settings."),
    "sync": _Entry(
        "Jobs", "tunesmith.cli.sync:sync", "Send what your own programs recorded without the server."
    ),
    "pause": _Entry("Jobs", "tunesmith.cli.lifecycle:pause", "Let a job rest with a checkpoint."),
    "resume": _Entry("Jobs", "tunesmith.cli.lifecycle:resume", "Queue a paused job again."),
    "cancel": _Entry("Jobs", "tunesmith.cli.lifecycle:cancel", "End a job, with a checkpoint or at once."),
    "checkpoint": _Entry("Jobs", "tunesmith.cli.lifecycle:checkpoint", "Ask a running job for a checkpoint."),
    "fork": _Entry(
        "Jobs", "tunesmith.cli.lifecycle:fork", "Go on from a checkpoint as a new job, with edits."
    ),
    "move": _Entry("Jobs", "tunesmith.cli.lifecycle:move", "Take a running job to another node."),
    "update": _Entry("Jobs", "tunesmith.cli.lifecycle:update", "Change priority, labels or deadlines."),
    "delete": _Entry("Jobs", "tunesmith.cli.lifecycle:delete", "Hide a finished job for good."),
    "explain": _Entry(
        "Jobs", "tunesmith.cli.lifecycle:explain", "Say why a job does not run, and what would start it."
    ),
    "attempts": _Entry("Jobs", "tunesmith.cli.history:attempts", "List the attempts of a job."),
    "events": _Entry("Jobs", "tunesmith.cli.history:events", "List what happened to a job."),
    "trace": _Entry("Jobs", "tunesmith.cli.trace:trace", "Show where the time of a job went."),
    "checkpoints": _Entry(
        "Jobs", "tunesmith.cli.history:checkpoints", "List, keep and let go a job's checkpoints."
    ),
    "datasets": _Entry(
        "Data and models", "tunesmith.cli.data:datasets", "Import, check, look into and derive datasets."
    ),
    "prompts": _Entry(
        "Data and models", "tunesmith.cli.prompts:prompts", "Templates that make prompts of rows."
    ),
    "models": _Entry("Data and models", "tunesmith.cli.models:models", "Base models, models and versions."),
    "evaluate": _Entry(
        "Data and models", "tunesmith.cli.evaluations:evaluate", "Judge models on a dataset, as a job."
    ),
    "evaluations": _Entry(
        "Data and models", "tunesmith.cli.evaluations:evaluations", "Scores, rows side by side, comparisons."
    ),
    "convert": _Entry(
        "Data and models",
        "tunesmith.cli.evaluations:convert",
        "Make a version from a checkpoint, or merge one.",
    ),
    "chat": _Entry("Data and models", "tunesmith.cli.chat:chat", "Talk to a model, or to two at once."),
    "verify": _Entry(
        "Data and models", "tunesmith.cli.proofs:verify", "Check a version, or an exported one, to the byte."
    ),
    "reproduce": _Entry(
        "Data and models", "tunesmith.cli.proofs:reproduce", "Train a version again and compare the bits."
    ),
    "alerts": _Entry("Fleet", "tunesmith.cli.alerts:alerts", "Alert rules, what they found, who is told."),
    "nodes": _Entry("Fleet", "tunesmith.cli.nodes:nodes", "The machines of the fleet: list, close, open."),
    "quota": _Entry("Fleet", "tunesmith.cli.quota:quota", "What the project may use of the fleet."),
    "profile": _Entry("Help", "tunesmith.cli.profiles:profile", "Servers you use, each under a name."),
    "doctor": _Entry("Help", "tunesmith.cli.doctor:doctor", "Check this installation, and say what to mend."),
    "version": _Entry("Help", "tunesmith.cli.about:version", "Print the versions of client and server."),
    "completion": _Entry(
        "Help", "tunesmith.cli.about:completion", "Print the completion script of your shell."
    ),
}


class _LazyGroup(click.Group):
    """A group whose commands are found in `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), f"{entry.target} is no command"
        from tunesmith.cli.output import add_option

        return add_option(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                rows = [
                    (name.ljust(width), entry.help)
                    for name, entry in COMMANDS.items()
                    if entry.section == section
                ]
                formatter.write_dl(rows)


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with `tunesmith up`; then, in another terminal, `tunesmith submit job.yaml --watch`.",
)
@click.option(
    "--address", metavar="HOST:PORT", help="The server. Default: TUNESMITH_ADDRESS, else the profile."
)
@click.option("--token", help="Your token. Default: TUNESMITH_TOKEN, else the profile `tunesmith up` wrote.")
@click.option("--project", help="The project. Default: TUNESMITH_PROJECT, else the profile, else `default`.")
@click.option("--profile", help="The profile. Default: TUNESMITH_PROFILE, else `tunesmith profile use`.")
@click.pass_context
def cli(
    ctx: click.Context, address: str | None, token: str | None, project: str | None, profile: str | None
) -> None:
    """Fine-tune language models on your own machines.

    Every listing takes --json and --output. Exit codes: 0 done, 1 error, 2 wrong usage, 3 not found,
    4 the job failed, 5 server unavailable, 130 interrupted.
    """
    ctx.obj = {"address": address, "token": token, "project": project, "profile": profile}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; errors are sentences on stderr, never tracebacks."""
    try:
        result = cli.main(
            args=list(sys.argv[1:] if argv is None else argv), prog_name="tunesmith", standalone_mode=False
        )
    except (Exception, KeyboardInterrupt) as error:
        # Imported only now: most runs need no word about errors.
        from tunesmith.cli.failure import report

        return report(error)
    return result if isinstance(result, int) else 0
