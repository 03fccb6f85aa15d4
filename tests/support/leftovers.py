"""Trainers that a platform leaves behind: they train on without it, as they should, and slow other tests."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from tunesmith_agent.process import start_ticks


def end_trainers(root: Path) -> None:
    """Kills the trainers of all nodes whose data lies below `root`, with what they started."""
    for pid in _living(root):
        with suppress(psutil.NoSuchProcess):
            trainer = psutil.Process(pid)
            for process in (*trainer.children(recursive=True), trainer):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def _living(root: Path) -> Iterator[int]:
    for notes in root.glob("data/**/runs/*/agent.json"):
        with suppress(OSError, ValueError):
            known = json.loads(notes.read_text())
            ranks = [[known["pid"], known["start_ticks"]], *known["peers"]]
            yield from (pid for pid, ticks in ranks if pid and start_ticks(pid) == ticks)
