"""The run folder as the agent sees it (docs/run-folder.md)."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, MessageToJson, ParseDict

from tunesmith.api.nodes.v1 import events_pb2

log = logging.getLogger(__name__)
RUN, CHECKPOINT, STOP = "run", "checkpoint", "stop"
_FACT, _MOST_FACTS, _LONGEST_FACT = re.compile("[a-z][a-z0-9_]{0,63}"), 64, 500  # limits of ReportAttempt


@dataclass
class Notes:
    """What the agent must still know after its own death; `agent.json`."""

    job: str
    epoch: int
    node: str
    traceparent: str = ""
    pid: int = 0
    start_ticks: int = 0  # with the pid, names a process for ever: pids come again
    peers: list[list[int]] = field(default_factory=list)  # the same two numbers of ranks 1 and above
    started: bool = False
    told_to_stop: bool = False
    told_to_kill: bool = False
    checkpoint_request: int = 0  # the last of the checkpoints asked for that the trainer was told of
    stalled: bool = False  # the agent killed it because nothing moved
    events_segment: int = 1
    events_offset: int = 0
    reported_digest: str = ""
    reported_step: int = -1  # of the newest checkpoint that is stored and known to the jobs service
    ended: bool = False  # its end was reported and taken, or it was replaced
    closed: bool = False  # and all it wrote is stored
    samples: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def project(self) -> str:
        """Id of the job's project."""
        return self.job.split("/")[1]

    @property
    def job_id(self) -> str:
        """Id of the job."""
        return self.job.split("/")[3]


class RunFolder:
    """One attempt's folder. Every file the agent writes is replaced atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, rank: int) -> Path:
        """Standard output and error of a rank."""
        return self.path / "logs" / f"rank-{rank}.log"

    @property
    def spool(self) -> Path:
        """Where metric records and events lie."""
        return self.path / "spool"

    def make(self, notes: Notes, assign: events_pb2.AssignAttempt) -> None:
        """Makes the folder with what is to be done and the agent's notes; OSError when the disk refuses."""
        for name in ("spool", "logs", "checkpoints"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        self._replace("assign.json", MessageToJson(assign, preserving_proto_field_name=True))
        self._replace("agent.json", json.dumps(asdict(notes)))

    def save(self, notes: Notes) -> None:
        """Writes the agent's notes. A full disk costs only what a restarted agent must find out anew."""
        try:
            self._replace("agent.json", json.dumps(asdict(notes)))
        except OSError as error:
            log.warning("notes cannot be written", extra={"folder": str(self.path), "error": str(error)})

    def notes(self) -> Notes | None:
        """Returns the agent's notes, or None when they were never written whole."""
        found = self._json("agent.json")
        return Notes(**found) if found is not None else None

    def words(self, rank: int) -> dict[str, Any]:
        """Returns what a rank last said of itself; empty when it said nothing."""
        return self._json("status.json" if rank == 0 else f"status-{rank}.json") or {}

    def assign(self) -> events_pb2.AssignAttempt | None:
        """Returns what the node was told to do, or None when it cannot be read."""
        found = self._json("assign.json")
        return ParseDict(found, events_pb2.AssignAttempt()) if found is not None else None

    def command(self, word: str) -> None:
        """Tells the trainer what is wanted now; who is to stop saves anyway, and is not told otherwise."""
        if word != CHECKPOINT or self._wanted() != STOP:
            self._replace("control", word + "\n")

    def _wanted(self) -> str:
        try:
            return (self.path / "control").read_text().strip()
        except FileNotFoundError:
            return ""

    def status(self) -> dict[str, Any] | None:
        """Returns what the trainer last said of itself."""
        return self._json("status.json")

    def environment(self) -> dict[str, str]:
        """Returns what the trainer computes with, as far as it said so."""
        found = self._json("environment.json")
        if not isinstance(found, dict):
            return {}
        named = [(name, str(value)[:_LONGEST_FACT]) for name, value in found.items() if _FACT.fullmatch(name)]
        return dict(named[:_MOST_FACTS])

    def checkpoints(self, after_step: int) -> list[dict[str, Any]]:
        """Returns the complete checkpoints beyond a step in the form of their events, oldest first."""
        found: list[dict[str, Any]] = []
        for manifest in sorted(self.path.glob("checkpoints/step-*/manifest.json")):
            step = int(manifest.parent.name.removeprefix("step-"))
            with suppress(FileNotFoundError):  # the trainer goes on, and has just replaced it by a newer one
                size_bytes = sum(file.stat().st_size for file in manifest.parent.iterdir())
                path, made = f"checkpoints/{manifest.parent.name}", manifest.stat().st_mtime
                found.append({"path": path, "step": step, "size_bytes": size_bytes, "time": made})
        return [checkpoint for checkpoint in found if checkpoint["step"] > after_step]

    def write_run(
        self,
        notes: Notes,
        assign: events_pb2.AssignAttempt,
        inputs: Mapping[str, object],
        snapshots: Path | None,
        gpu_peak_tflops: float = 0.0,
    ) -> None:
        """Writes `run.json`: what the trainer is to do."""
        spec = MessageToDict(
            assign.spec, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        run = {
            "version": 1,
            "job": notes.job,
            "job_id": notes.job_id,
            "display_name": assign.display_name,
            "epoch": notes.epoch,
            "world_size": world_size(assign),
            "local_world_size": len(local_ranks(assign)),
            "rendezvous": assign.rendezvous or None,
            "spec": spec,
            "spec_digest": assign.spec_digest,
            **inputs,
            "samples": [{"prompt": s.prompt, "before": s.before} for s in assign.samples],
            "snapshots": str(snapshots) if snapshots is not None else None,
            "forked": assign.forked,
            "accept_drift": assign.accept_drift,
            "micro_batch_divisor": assign.micro_batch_divisor or 1,
            "gpus": list(assign.gpus),
            "gpu_peak_tflops": gpu_peak_tflops,
            "traceparent": notes.traceparent,
        }
        self._replace("run.json", json.dumps(run, indent=1))

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.path / name).read_text())
            return found
        except (FileNotFoundError, ValueError):
            return None

    def _replace(self, name: str, text: str) -> None:
        temporary = self.path / f".{name}.tmp"
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path / name)


def world_size(assign: events_pb2.AssignAttempt) -> int:
    """Returns how many processes (ranks) an attempt has on all its nodes."""
    return max(len(assign.nodes), 1) * _per_node(assign)


def local_ranks(assign: events_pb2.AssignAttempt) -> range:
    """Returns the ranks of an attempt that run on this node."""
    first = assign.node_rank * _per_node(assign)
    return range(first, first + _per_node(assign))


def _per_node(assign: events_pb2.AssignAttempt) -> int:
    return max(assign.spec.resources.processes_per_node, 1)


def find_runs(root: Path) -> Iterator[tuple[RunFolder, Notes]]:
    """Returns the run folders of this node with their notes."""
    if not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        folder = RunFolder(path)
        notes = folder.notes()
        if notes is not None:
            yield folder, notes


class EventTail:
    """Reads `spool/events-*.jsonl` onwards from the position in the notes."""

    def __init__(self, folder: RunFolder, notes: Notes) -> None:
        self._folder, self._notes = folder, notes

    def read(self) -> list[dict[str, Any]]:
        """Returns the whole lines that came since the last call and moves the position in the notes."""
        events: list[dict[str, Any]] = []
        while True:
            path = self._folder.spool / f"events-{self._notes.events_segment:08d}.jsonl"
            if path.exists():
                with path.open("rb") as file:
                    file.seek(self._notes.events_offset)
                    data = file.read()
                whole = data[: data.rfind(b"\n") + 1]
                self._notes.events_offset += len(whole)
                events += _parse_lines(whole)
            following = sorted(
                p.name for p in self._folder.spool.glob("events-*.jsonl") if p.name > path.name
            )
            if not following:
                return events
            self._notes.events_segment = int(following[0][7:15])
            self._notes.events_offset = 0


def _parse_lines(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # a torn line before a restart: the write never happened
