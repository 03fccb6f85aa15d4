"""Forking: a new job that goes on from a checkpoint of another, with edits to its spec."""

import difflib
from collections.abc import Iterable, Iterator
from datetime import datetime

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import events_pb2, jobs_pb2, spec_pb2, state_pb2, verbs_pb2
from tunesmith.errors import FailedPrecondition, InvalidArgument
from tunesmith_jobs import checkpoints, spec
from tunesmith_jobs.store import Caller, change_of, draft, insert
from tunesmith_jobs.tables import REQUESTS, CheckpointRow
from tunesmith_kit import names
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.idempotency import once

# The weights of a checkpoint fit one base model and one form of adapter only.
_FROZEN = ("base_model", "method", "adapter")


class Forks:
    """Makes jobs from checkpoints of others."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock

    async def fork(self, request: verbs_pb2.ForkJobRequest, caller: Caller) -> jobs_pb2.ForkJobResponse:
        """Accepts a job in state VALIDATING that goes on from a kept checkpoint, once for a request id.

        Raises:
            NotFound: there is no such job.
            FailedPrecondition: it has no such checkpoint.
            InvalidArgument: an edit is unknown, not allowed, or makes the spec inconsistent.
        """
        for path in request.update_mask.paths:
            _check_path(path)

        def act(session: Session) -> jobs_pb2.ForkJobResponse:
            now = self._clock.now()
            parent = change_of(session, request.name, caller, now).job
            job = _child(session, parent, request, caller, now)
            (project, _) = names.parse("projects/*/jobs/*", parent.name)
            return jobs_pb2.ForkJobResponse(job=insert(session, project, job, caller, now, parent.job_id))

        return await self._db.write(
            lambda s: once(s, REQUESTS, caller.name, request, lambda: act(s), jobs_pb2.ForkJobResponse)
        )


def _child(
    session: Session,
    parent: jobs_pb2.Job,
    request: verbs_pb2.ForkJobRequest,
    caller: Caller,
    now: datetime,
) -> jobs_pb2.Job:
    if parent.spec.HasField("external"):
        raise FailedPrecondition(
            "CHECKPOINT_EXTERNAL",
            "no job can go on from a checkpoint of a program that the platform did not start",
            field="name",
            value=parent.display_name,
            remedy="tunesmith.init(resume=…) goes on in a program of your own; of an adapter or a model "
            "`tunesmith models register job:RUN` makes a version",
        )
    origin = _origin(session, parent, request.step if request.HasField("step") else None)
    edited = spec_pb2.JobSpec()
    edited.CopyFrom(parent.spec)
    # A newer version of the data must not slip in: without an edit the fork sees its parent's.
    edited.dataset = pinned = _pinned_dataset(parent)
    for path in request.update_mask.paths:
        _copy(request.spec, edited, path.split("."))
    _redo_defaults(edited, request.update_mask.paths)
    (project, _) = names.parse("projects/*/jobs/*", parent.name)
    job = draft(project, spec.complete(edited), caller, now)
    job.forked_from.CopyFrom(events_pb2.ForkOrigin(job=parent.name, step=origin.step, digest=origin.digest))
    job.checkpoint.CopyFrom(origin)
    job.accept_drift = request.accept_drift
    job.base_model.CopyFrom(parent.base_model)
    if edited.dataset == pinned:
        job.dataset.CopyFrom(parent.dataset)
    if edited.training.micro_batch_size == parent.spec.training.micro_batch_size:
        job.micro_batch_divisor = parent.micro_batch_divisor
    if list(edited.sample_prompts) == list(parent.spec.sample_prompts):
        answered = (s for s in parent.samples if s.before)
        job.samples.extend(state_pb2.Sample(prompt=s.prompt, before=s.before) for s in answered)
    return job


def _origin(session: Session, parent: jobs_pb2.Job, step: int | None) -> state_pb2.CheckpointRef:
    """Returns the checkpoint to go on from: the newest, or that of a step."""
    if step is None:
        if not parent.HasField("checkpoint"):
            raise checkpoints.missing(session, parent.job_id, None, "no checkpoint yet")
        step = parent.checkpoint.step
    row = session.get(CheckpointRow, (parent.job_id, step))
    if row is not None and not row.expired:
        return checkpoints.to_ref(row)
    if row is None and parent.checkpoint.step == step and parent.HasField("checkpoint"):
        return parent.checkpoint  # the one it was forked from itself
    raise checkpoints.missing(
        session, parent.job_id, step, "it expired" if row is not None else "never committed"
    )


def _pinned_dataset(job: jobs_pb2.Job) -> str:
    if "@" in job.spec.dataset or not job.dataset.name:
        return job.spec.dataset
    return f"{job.spec.dataset}@{job.dataset.name.rpartition('/')[2]}"


def _redo_defaults(edited: spec_pb2.JobSpec, paths: Iterable[str]) -> None:
    """Takes back what was filled in from a field that was edited.

    The number of logical shards stays what it was, whatever the processes are: it is part of the bits.
    """
    if "resources.gpus_per_node" in paths and "resources.processes_per_node" not in paths:
        edited.resources.processes_per_node = 0


def _check_path(path: str) -> None:
    """Refuses a path that is no field of a spec, or one that a fork cannot change."""
    root = path.split(".")[0]
    if root in _FROZEN:
        raise InvalidArgument(
            "FIELD_FROZEN",
            f"{path} cannot be changed in a fork: the checkpoint's weights fit no other",
            field=f"spec.{path}",
            value=path,
            remedy="leave it as it is, or submit a job of its own",
        )
    known = list(_paths(spec_pb2.JobSpec.DESCRIPTOR))
    if path not in known:
        near = difflib.get_close_matches(path, known, n=1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else "name fields as in a job file, such as training.learning_rate"
        )
        raise InvalidArgument(
            "FIELD_INVALID", f"the spec has no field {path}", field="update_mask", value=path, remedy=hint
        )


def _paths(descriptor: Descriptor, prefix: str = "") -> Iterator[str]:
    for field in descriptor.fields:
        yield prefix + field.name
        nested = field.message_type
        if nested is not None and nested.file.package == descriptor.file.package and not field.is_repeated:
            yield from _paths(nested, f"{prefix}{field.name}.")


def _copy(source: Message, target: Message, parts: list[str]) -> None:
    """Sets one field of `target` to what it is in `source`, absent included."""
    name = parts[0]
    field = source.DESCRIPTOR.fields_by_name[name]
    if len(parts) > 1:
        _copy(getattr(source, name), getattr(target, name), parts[1:])
        return
    target.ClearField(name)
    if field.is_repeated or field.message_type is not None:
        if field.is_repeated or source.HasField(name):
            _merge(source, target, name)
    elif not field.has_presence or source.HasField(name):
        setattr(target, name, getattr(source, name))


def _merge(source: Message, target: Message, name: str) -> None:
    only = type(source)()
    only.CopyFrom(source)
    for known, _ in source.ListFields():
        if known.name != name:
            only.ClearField(known.name)
    target.MergeFrom(only)
