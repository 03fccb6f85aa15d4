"""Errors as the user sees them: a sentence, the place, the remedy, an exit code."""

from __future__ import annotations

import errno
import os
import traceback

import click

from tunesmith.errors import DeadlineExceeded, NotFound, TunesmithError, Unavailable

ERROR, USAGE, NOT_FOUND, JOB_FAILED, UNAVAILABLE, INTERRUPTED = 1, 2, 3, 4, 5, 130


def report(error: BaseException) -> int:
    """Prints an error to stderr and returns the exit code of the process."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.exceptions.Abort):
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        _usage(error)
        return USAGE if isinstance(error, click.UsageError) else ERROR
    if isinstance(error, TunesmithError):
        show(error)
        return exit_code(error)
    _unexpected(error)
    return ERROR


def exit_code(error: TunesmithError) -> int:
    """Returns the exit code of an error of the platform."""
    if isinstance(error, NotFound):
        return NOT_FOUND
    return UNAVAILABLE if isinstance(error, Unavailable | DeadlineExceeded) else ERROR


def show(error: TunesmithError) -> None:
    """Prints message, place, value and remedy; of several violations each."""
    say("error:", error.message, "red")
    if len(error.violations) > 1 or (error.violations and not error.field):
        for violation in error.violations:
            click.echo(f"  {click.style(violation.path or 'file', bold=True)}: {violation.problem}", err=True)
            detail("  value:", violation.value)
            detail("  remedy:", violation.remedy)
        return
    detail("field:", error.field)
    detail("value:", error.value)
    detail("remedy:", error.remedy)


def say(label: str, text: str, color: str) -> None:
    """Prints a labelled sentence to stderr."""
    click.echo(f"{click.style(label, fg=color, bold=True)} {text}", err=True)


def detail(label: str, text: str) -> None:
    """Prints one line of detail to stderr, if there is anything to say."""
    if text:
        click.echo(f"  {click.style(label, dim=True)} {text}", err=True)


def _usage(error: click.ClickException) -> None:
    say("error:", error.format_message(), "red")
    context = getattr(error, "ctx", None)
    if context is not None:
        detail("remedy:", f"see `{context.command_path} --help`")


def _unexpected(error: BaseException) -> None:
    if os.environ.get("TUNESMITH_DEBUG"):
        click.echo("".join(traceback.format_exception(error)), err=True)
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        say("error:", f"the disk is full: {error.filename or 'no file is named'}", "red")
        detail("remedy:", "free some space, then try again")
        return
    say("error:", f"this is a bug of Tunesmith: {type(error).__name__}: {text}", "red")
    detail("remedy:", "run it again with TUNESMITH_DEBUG=1 and report what it prints")
