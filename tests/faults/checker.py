"""Compares what was promised with what the platform says at the end.

Promised: the history (every call that was answered) and the trainers' own spools. What the platform says:
its public interface, and for the raw rows and blobs its stores, read from outside.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sqlalchemy import create_engine, text

from tests.faults.history import History
from tests.faults.shapes import Shape
from tests.faults.site import Site
from tests.faults.spools import Record, Witness
from tests.support.jobs import output_digest
from tunesmith import Client
from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.jobs.v1.events_pb2 import JobEvent
from tunesmith.errors import NotFound, TunesmithError
from tunesmith_jobs import machine
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.db import normalise

Points = dict[tuple[str, int], float]
ACCEPTED = ("submit_acked", "fork_acked")  # facts that promise a job
_RIGHTLY = {"plain": ("SUCCEEDED",), "cancelled": ("CANCELLED", "SUCCEEDED")}


# What may be seen of a job, and the calls that may bring it about.
_WISHES = {
    "paused": "pause_called",
    "resumed": "resume_called",
    "moved": "move_called",
    "cancelled": "cancel_called",
    "forked": "fork_acked",
}


@dataclass
class Findings:
    """What was counted, and each broken promise as a sentence."""

    jobs_accepted: int = 0
    jobs_lost: int = 0
    points_logged: int = 0
    points_stored: int = 0
    points_doubled: int = 0
    checkpoints_verified: int = 0
    runs: int = 0
    weights_identical: int = 0
    second_writers: int = 0
    granted: Counter[str] = field(default_factory=Counter)  # wishes of clients that came true
    events: dict[str, list[JobEvent]] = field(default_factory=dict)  # of each job, its whole history
    problems: list[str] = field(default_factory=list)

    def say(self, problem: str) -> None:
        """Notes a broken promise."""
        self.problems.append(problem)


class Checker:
    """Checks one campaign."""

    def __init__(
        self,
        site: Site,
        client: Client,
        history: History,
        witness: Witness,
        choice: Sequence[Shape],
        reference: Mapping[str, str],
    ) -> None:
        self._site, self._client, self._history, self._witness = site, client, history, witness
        self._shapes = {shape.name: shape for shape in choice}
        self._reference = reference
        self._blobs = BlobStore.open(str(site.blobs()))
        self.found = Findings()

    def check(self) -> Findings:
        """Looks at every accepted job once."""
        accepted = {fact["job"]: fact["shape"] for fact in self._history.read(*ACCEPTED)}
        cancelled = {fact["job"] for fact in self._history.read("cancel_acked")}
        seen = {fact["job"]: fact["state"] for fact in self._history.read("terminal_seen")}
        self.found.jobs_accepted = len(accepted)
        for name, shape in accepted.items():
            try:
                job = self._client.jobs.get(name)
            except NotFound:
                self.found.jobs_lost += 1
                self.found.say(f"{name} was accepted and is gone")
                continue
            self._check_job(job, self._shapes[shape], name in cancelled)
            if seen.get(name, job.state) != job.state:
                self.found.say(f"{name} was {seen[name]} for its client and is {job.state} now")
        self._check_unacked(accepted)
        self._check_raw_rows()
        return self.found

    def _check_job(self, job: Any, shape: Shape, cancelled: bool) -> None:
        self.found.runs += 1
        if job.state not in _RIGHTLY["cancelled" if cancelled else "plain"]:
            self.found.jobs_lost += 1
            self.found.say(f"{job.name} ({shape.name}) is {job.state}: {_why(job)}")
        records = self._witness.records(job.id)
        self._check_points(job, shape, records)
        events = list(job.events())
        self.found.events[job.id] = events
        self._check_wishes(job, events)
        self._check_checkpoints(job)
        self._check_writers(job, events)
        if job.succeeded:
            self._check_version(job, shape)

    def _check_points(self, job: Any, shape: Shape, records: Sequence[Record]) -> None:
        logged = expected_points(records)
        stored, doubled = _stored_points(self._client, job.id)
        self.found.points_logged += len(logged)
        self.found.points_stored += sum(1 for point in logged if point in stored)
        self.found.points_doubled += doubled
        if doubled:
            self.found.say(f"{job.name}: {doubled} points came twice")
        missing = [point for point in logged if point not in stored]
        if missing:
            self.found.say(f"{job.name}: {len(missing)} points were logged and are not stored: {missing[:3]}")
        for point in stored.keys() - logged.keys():
            self.found.say(f"{job.name}: {point} is stored and no trainer logged it")
            break
        wrong = [p for p, value in logged.items() if p in stored and _bits(stored[p]) != _bits(value)]
        if wrong:
            self.found.say(f"{job.name}: {len(wrong)} points have another value than logged: {wrong[:3]}")
        steps = sorted(step for key, step in stored if key == "train/loss")
        first = job.proto.forked_from.step + 1
        if job.succeeded and steps != list(range(first, shape.steps + 1)):
            self.found.say(
                f"{job.name}: its {len(steps)} losses are not those of steps {first} to {shape.steps}"
            )

    def _check_wishes(self, job: Any, events: Sequence[JobEvent]) -> None:
        """A fork goes on from what its parent committed; nothing rests, wakes or moves unless asked to."""
        for fork in self._history.read("fork_acked"):
            if fork["job"] != job.name:
                continue
            origin, parent = job.proto.forked_from, fork["parent"].rpartition("/")[2]
            committed = {event["digest"] for _, event in self._witness.events(parent, "checkpoint")}
            if (origin.job, origin.step) != (fork["parent"], fork["step"]) or origin.digest not in committed:
                self.found.say(f"{job.name}: it was forked from {origin.job} at {origin.step}, asked {fork}")
        asked = Counter(
            fact["kind"] for fact in self._history.read(*_WISHES.values()) if fact["job"] == job.name
        )
        for wish, number in Counter(_wishes(job, events)).items():
            self.found.granted[wish] += number
            if number > asked[_WISHES[wish]]:
                self.found.say(f"{job.name}: {wish} {number} times, asked {asked[_WISHES[wish]]} times")

    def _check_checkpoints(self, job: Any) -> None:
        kept = job.checkpoints()
        known = {entry.digest: entry.step for entry in kept}
        # After a move or a kill the same step may be committed again, by a newer attempt.
        newest = max(((entry.step, entry.epoch) for entry in kept), default=(0, 0))
        ours = {(f["job"], f["epoch"], f["step"]) for f in self._history.read("damaged")}
        for epoch, event in self._witness.events(job.id, "checkpoint"):
            excused = (event["step"], epoch) < newest or (job.id, epoch, event["step"]) in ours
            if event["digest"] not in known and not excused and not self._refused(job, epoch):
                self.found.say(f"{job.name}: checkpoint of step {event['step']}, attempt {epoch}, is unknown")
        for digest, step in known.items():
            try:
                manifest.verify(self._blobs, digest)
            except TunesmithError as error:
                self.found.say(f"{job.name}: checkpoint of step {step} does not verify: {error.message}")
            else:
                self.found.checkpoints_verified += 1

    def _refused(self, job: Any, epoch: int) -> bool:
        """Whether an attempt lost its authority, so that what it committed last may rightly be unknown."""
        ends = (
            state_pb2.ATTEMPT_STATE_LOST,
            state_pb2.ATTEMPT_STATE_KILLED,
            state_pb2.ATTEMPT_STATE_FAILED,
        )
        return any(attempt.epoch == epoch and attempt.state in ends for attempt in job.attempts())

    def _check_writers(self, job: Any, events: Sequence[JobEvent]) -> None:
        """At most one attempt in force at any revision: the next begins only after the one before ended."""
        in_force: int | None = None
        for event in events:
            if event.WhichOneof("event") != "attempt_state_changed":
                continue
            moved = event.attempt_state_changed
            if in_force not in (None, event.epoch):
                self.found.second_writers += 1
                self.found.say(f"{job.name}: attempt {event.epoch} wrote while {in_force} was in force")
            in_force = None if moved.to_state in machine.ATTEMPT_ENDS else event.epoch
        epochs = [attempt.epoch for attempt in job.attempts()]
        if epochs != list(range(len(epochs), 0, -1)):
            self.found.say(f"{job.name}: its attempts are {epochs}")

    def _check_version(self, job: Any, shape: Shape) -> None:
        version = self._client.models.version(job.proto.model_version)
        if version.job != job.name:
            self.found.say(f"{job.name}: its version names {version.job}")
        for file in version.manifest.files:
            try:
                self._blobs.verify(file.sha256)
            except TunesmithError as error:
                self.found.say(f"{job.name}: {file.path} of its version does not verify: {error.message}")
        if output_digest(self._client, job) == self._reference[shape.name]:
            self.found.weights_identical += 1
        else:
            self.found.say(f"{job.name} ({shape.name}): its weights are not those of the undisturbed run")

    def _check_unacked(self, accepted: Mapping[str, str]) -> None:
        """A job or version that nobody was promised may exist only for a call that was never answered."""
        called = {fact["request_id"] for fact in self._history.read("submit_called", "fork_called")}
        acked = {fact["request_id"] for fact in self._history.read(*ACCEPTED)}
        jobs = [job.name for job in self._client.jobs.list(experiment="chaos")]
        doubled = [name for name, number in Counter(jobs).items() if number > 1]
        surplus = [name for name in jobs if name not in accepted]
        if doubled or len(surplus) > len(called - acked):
            self.found.say(f"jobs beyond those asked for: {surplus or doubled}")
        try:
            owners = Counter(version.job for version in self._client.models.versions("chaos"))
        except NotFound:
            return
        for name, number in owners.items():
            if number > 1:
                self.found.say(f"{name} has {number} versions")

    def _check_raw_rows(self) -> None:
        """No record lies in two rows, whatever the merged curve shows: neither as it came, nor compacted."""
        engine = create_engine(normalise(self._site.database_url("metrics")))
        schema = "" if engine.dialect.name == "sqlite" else "metrics."
        query = text(
            f"SELECT job_id, epoch, rank, first_seq, num_records FROM {schema}segments ORDER BY 1, 2, 3, 4"
        )
        sums = text(
            f"SELECT job_id, epoch, key, SUM(num_points) AS num FROM {schema}chunks "
            "WHERE rank = 0 AND job_id NOT LIKE 'node.%' GROUP BY 1, 2, 3"
        )
        with engine.connect() as connection:
            rows = connection.execute(query).all()
            compacted = connection.execute(sums).all()
        engine.dispose()
        for before, after in pairwise(rows):
            overlap = before.first_seq + before.num_records - after.first_seq
            if before[:3] == after[:3] and overlap > 0:
                self._say_doubled(after.job_id, after.epoch, overlap)
        logged = {job: self._witness.counts(job) for job in {row.job_id for row in compacted}}
        for row in compacted:
            if (surplus := row.num - logged[row.job_id][row.epoch, row.key]) > 0:
                self._say_doubled(row.job_id, row.epoch, surplus)

    def _say_doubled(self, job_id: str, epoch: int, number: int) -> None:
        self.found.points_doubled += number
        self.found.say(f"job {job_id}, attempt {epoch}: {number} records stored twice")


def _wishes(job: Any, events: Sequence[JobEvent]) -> Iterator[str]:
    """Yields what clients' wishes did to a job, as its history has it."""
    if job.proto.HasField("forked_from"):
        yield "forked"
    for event in events:
        if event.WhichOneof("event") != "state_changed":
            continue
        moved = event.state_changed
        if moved.to_state == machine.PAUSED:
            yield "paused"
        elif moved.from_state == machine.PAUSED and moved.to_state == machine.QUEUED:
            yield "resumed"
        elif moved.reason == state_pb2.STATE_REASON_MOVED and moved.to_state == machine.QUEUED:
            yield "moved"
        elif moved.to_state == machine.CANCELLED:
            yield "cancelled"


def expected_points(records: Sequence[Record]) -> Points:
    """What must be stored: of each metric and step the value that the newest attempt logged last."""
    points: Points = {}
    for record in records:
        for key, value in record.values.items():
            points[key, record.step] = value
    return points


def _stored_points(client: Client, job_id: str) -> tuple[Points, int]:
    try:
        curves = client.metrics.series(job_id)
    except NotFound:  # nothing of the job ever came
        return {}, 0
    points: Points = {}
    doubled = 0
    for key, curve in curves.items():
        if key.startswith("system/"):
            continue
        for step, value in zip(curve.steps, curve.values, strict=True):
            doubled += (key, int(step)) in points
            points[key, int(step)] = float(value)
    return points, doubled


def missing_points(client: Client, witness: Witness, job_id: str) -> int:
    """How many logged points of a job are not stored yet."""
    stored, _ = _stored_points(client, job_id)
    return sum(1 for point in expected_points(witness.records(job_id)) if point not in stored)


def _why(job: Any) -> str:
    failure = job.proto.failure
    return f"{failure.reason} {failure.message}" if failure.reason else "not ended"


def _bits(value: float) -> bytes:
    return struct.pack("<d", value)
