"""The trainers' own word: spools, kept by hard links before an agent trims them."""

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.site import Site
from tests.support.spool import step_records

_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Record:
    """One step record of an attempt. `time` in Unix seconds."""

    epoch: int
    seq: int
    step: int
    time: float
    values: dict[str, float]


class Witness:
    """Links every spool segment it sees into a folder of its own, on the same file system."""

    def __init__(self, site: Site) -> None:
        self._site, self._ended = site, threading.Event()
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)

    def start(self) -> None:
        """Begins to look, twenty times a second."""
        self._thread.start()

    def stop(self) -> None:
        """Looks for the last time."""
        self._ended.set()
        self._thread.join()
        self._look()

    def records(self, job_id: str) -> list[Record]:
        """Everything the attempts of a job logged, by attempt and sequence number."""
        found = [
            record
            for folder in self._kept(job_id)
            for segment in sorted(folder.glob("metrics-*.bin"))
            for record in read_segment(segment.read_bytes(), int(folder.name.rpartition("-")[2]))
        ]
        return sorted(found, key=lambda record: (record.epoch, record.seq))

    def counts(self, job_id: str) -> Counter[tuple[int, str]]:
        """How many records of each attempt have each key."""
        return Counter((record.epoch, key) for record in self.records(job_id) for key in record.values)

    def events(self, job_id: str, kind: str) -> list[tuple[int, dict[str, Any]]]:
        """Events of one kind with the attempt that said them; a torn line was never said."""
        found = []
        for folder in self._kept(job_id):
            epoch = int(folder.name.rpartition("-")[2])
            for segment in sorted(folder.glob("events-*.jsonl")):
                for line in segment.read_text(errors="replace").split("\n")[:-1]:
                    with suppress(ValueError):
                        event = json.loads(line)
                        if event.get("type") == kind:
                            found.append((epoch, event))
        return found

    def _kept(self, job_id: str) -> list[Path]:
        return [path for home in self._site.homes() for path in (home / "witness").glob(f"{job_id}-*")]

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        for home in self._site.homes():
            for segment in home.glob("runs/*/spool/*-????????.*"):
                kept = home / "witness" / segment.parent.parent.name / segment.name
                if not kept.exists():
                    with suppress(OSError):  # just trimmed, or the disk is full: seen again if it is there
                        kept.parent.mkdir(parents=True, exist_ok=True)
                        os.link(segment, kept)


def read_segment(data: bytes, epoch: int) -> Iterator[Record]:
    """Yields the whole step records of a segment."""
    for seq, step, time_us, values in step_records(data):
        yield Record(epoch, seq, step, time_us / 1e6, values)
