"""Uploads with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tunesmith.api.registry.v1.datasets_pb2 import ImportProgress
from tunesmith.cli.session import console


@contextmanager
def upload_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a callback for uploads that draws a bar on stderr; on no terminal it draws nothing."""
    err = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(label, total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield show


@contextmanager
def import_bars(label: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[ImportProgress], None]]]:
    """Gives callbacks for the upload and for the server's check of a file; one bar for both, on stderr."""
    err = console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TextColumn("{task.fields[found]}"),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(label, total=None, found="")

        def sent(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, description=f"{label}: sending")

        def checked(now: ImportProgress) -> None:
            found = f"{now.num_rows:,} rows, {now.num_errors:,} errors, {now.num_warnings:,} warnings"
            progress.update(
                task, completed=now.num_bytes, total=now.total_bytes or None,
                description=f"{label}: {now.phase}", found=found,
            )  # fmt: skip

        yield sent, checked


@contextmanager
def share_bar(label: str) -> Iterator[Callable[[float], None]]:
    """Gives a callback for work whose share is known, from 0 to 1."""
    err = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(label, total=1.0)
        yield lambda share: progress.update(task, completed=share)
