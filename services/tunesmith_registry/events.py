"""What the registry hears from the jobs service, and its answers: inputs checked, outputs verified.

Each event is answered once: the note that it was answered is part of the transaction that holds the answer.
"""

import asyncio
import logging
from datetime import timedelta

from google.protobuf.message import DecodeError, Message
from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.jobs.v1 import events_pb2 as jobs_events_pb2
from tunesmith.api.jobs.v1 import spec_pb2
from tunesmith.api.registry.v1 import evaluations_pb2, events_pb2
from tunesmith.errors import FailedPrecondition, InvalidArgument, NotFound, TunesmithError
from tunesmith_kit import manifest, names, subjects
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.bus import Bus, Consumer, Delivery
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.holds import Holds
from tunesmith_kit.manifest import Manifest
from tunesmith_kit.streams import EVENTS
from tunesmith_kit.telemetry import METRICS, Telemetry
from tunesmith_registry import models, store, versions
from tunesmith_registry.change import Caller, say
from tunesmith_registry.data import prompts
from tunesmith_registry.evaluations import inputs, outputs
from tunesmith_registry.evaluations import store as evaluations
from tunesmith_registry.evaluations.inputs import Pinned
from tunesmith_registry.governance import policies, records
from tunesmith_registry.tables import ANSWERED

log = logging.getLogger(__name__)

_CHECKPOINTS = ("checkpoint_committed", "checkpoint_pinned", "checkpoint_expired")
HEARD = ("created", "output_ready", "deleted", *_CHECKPOINTS)
ACTOR = "service/registry"
# Longer than EVENTS keeps anything, so a note never goes before its event.
_KEPT = timedelta(days=31)


class JobEvents:
    """Hears events of jobs and answers them."""

    def __init__(
        self, db: Database, blobs: BlobStore, holds: Holds, clock: Clock, telemetry: Telemetry
    ) -> None:
        self._db, self._blobs, self._clock, self._telemetry = db, blobs, clock, telemetry
        self._holds = holds

    async def start(self, bus: Bus) -> Consumer:
        """Begins to hear; verifying a large output does not hold up the others."""
        filters = subjects.any_event("job", *HEARD)
        return await bus.consume(EVENTS, "registry-jobs", self._hear, filter_subjects=filters, concurrency=4)

    async def _hear(self, delivery: Delivery) -> None:
        try:
            event = jobs_events_pb2.JobEvent.FromString(delivery.payload)
        except DecodeError as error:
            raise InvalidArgument("MESSAGE_MALFORMED", "not a JobEvent", field=delivery.subject) from error
        project, job_id = names.parse("projects/*/jobs/*", event.job, "job")
        if await self._db.read(lambda session: _answered(session, event.event_id)):
            return
        kind = event.WhichOneof("event")
        if kind == "created" and event.created.spec.HasField("external"):
            return  # a program that runs already: it has no inputs of ours
        if kind == "created":
            with self._telemetry.span(
                "check_inputs", parent=event.traceparent, kind="consumer", job=event.job
            ):
                damage = await asyncio.to_thread(_checkpoint_error, self._blobs, event.created)
                pinned = await inputs.pin(self._db, self._blobs, project, event.created.spec)
                await self._db.write(
                    lambda session: self._check_inputs(session, project, job_id, event, damage, pinned)
                )
        elif kind == "output_ready":
            await self._take_output(project, job_id, event)
        elif kind == "deleted":
            await asyncio.to_thread(self._holds.release, job_id)  # its pictures; harmless when repeated
        elif kind in _CHECKPOINTS:
            await self._db.write(lambda session: self._note_checkpoint(session, project, job_id, event))

    def _caller(self, event: jobs_events_pb2.JobEvent) -> Caller:
        return Caller(ACTOR, self._clock.now(), event.traceparent)

    def _check_inputs(
        self,
        session: Session,
        project: str,
        job_id: str,
        event: jobs_events_pb2.JobEvent,
        damage: TunesmithError | None,
        pinned: Pinned | None,
    ) -> None:
        if not self._note(session, event):
            return
        spec = event.created.spec
        errors = [detail(damage, "forked_from")] if damage is not None else []
        good = events_pb2.JobInputsValidated(job=event.job)
        if pinned is not None:
            errors += [detail(error, where) for where, error in pinned.errors]
            good.MergeFrom(pinned.validated())
        else:
            errors += self._check_base(session, project, event, good, forkable=damage is None)
        if not spec.HasField("export"):
            errors += _check_data(session, project, spec, good)
        if errors:
            bad = events_pb2.JobInputsRejected(job=event.job, errors=errors)
            self._answer(session, project, job_id, event, "inputs_rejected", "job_inputs_rejected", bad)
        else:
            records.note(session, self._caller(event), project, job_id, event, good)
            self._answer(session, project, job_id, event, "inputs_validated", "job_inputs_validated", good)

    def _check_base(
        self,
        session: Session,
        project: str,
        event: jobs_events_pb2.JobEvent,
        good: events_pb2.JobInputsValidated,
        *,
        forkable: bool,
    ) -> list[common_pb2.ErrorDetail]:
        """Pins the base model of a job that trains; returns what is wrong."""
        try:
            base = store.base_model(session, project, event.created.spec.base_model)
            good.base_model, good.base_model_digest = base.name, base.digest
            if event.created.HasField("forked_from") and forkable:
                _check_origin(self._blobs, event.created.forked_from, base.digest)
        except (NotFound, FailedPrecondition) as error:
            return [detail(error, "spec.base_model")]
        return []

    async def _take_output(self, project: str, job_id: str, event: jobs_events_pb2.JobEvent) -> None:
        digest = event.output_ready.manifest_digest
        with self._telemetry.span(
            "verify_output", parent=event.traceparent, kind="consumer", job=event.job,
            attributes={"digest": digest},
        ):  # fmt: skip
            try:
                if event.output_ready.HasField("evaluation"):
                    await self._take_evaluation(project, job_id, event)
                    return
                allowed = await self._db.read(lambda session: policies.allowed_code(session, project))
                artifact = await asyncio.to_thread(_verified, self._blobs, digest, allowed)
            except (FailedPrecondition, NotFound, InvalidArgument) as error:
                log.warning("output refused", extra={"job": event.job, "reason": error.reason})
                bad = error
                await self._db.write(lambda session: self._reject(session, project, job_id, event, bad))
                return
            if await self._db.write(
                lambda session: self._register(session, project, job_id, event, artifact)
            ):
                METRICS.model_versions.inc()

    async def _take_evaluation(self, project: str, job_id: str, event: jobs_events_pb2.JobEvent) -> None:
        """Verifies and scores what an evaluation left; the job ends as the answer says."""
        ready = event.output_ready

        def judge() -> tuple[evaluations_pb2.Evaluation, str]:
            artifact = manifest.verify(self._blobs, ready.manifest_digest)
            made = outputs.judge(self._blobs, artifact, event.job, ready)
            return made, artifact.properties.get("base_model_digest", "")

        made, base_digest = await asyncio.to_thread(judge)
        await self._db.write(lambda session: self._enter(session, project, job_id, event, made, base_digest))

    def _enter(
        self,
        session: Session,
        project: str,
        job_id: str,
        event: jobs_events_pb2.JobEvent,
        made: evaluations_pb2.Evaluation,
        base_digest: str,
    ) -> None:
        if not self._note(session, event):
            return
        entered = evaluations.enter(session, self._caller(event), project, made, base_digest)
        done = events_pb2.EvaluationCompleted(job=event.job, evaluation=entered)
        done.evaluation.ClearField("manifest")
        self._answer(session, project, job_id, event, "evaluation_completed", "evaluation_completed", done)

    def _reject(
        self,
        session: Session,
        project: str,
        job_id: str,
        event: jobs_events_pb2.JobEvent,
        error: TunesmithError,
    ) -> None:
        if self._note(session, event):
            bad = events_pb2.ModelVersionRejected(job=event.job, error=detail(error, "output"))
            self._answer(session, project, job_id, event, "version_rejected", "model_version_rejected", bad)

    def _register(
        self,
        session: Session,
        project: str,
        job_id: str,
        event: jobs_events_pb2.JobEvent,
        artifact: Manifest,
    ) -> bool:
        if not self._note(session, event):
            return False
        ready = event.output_ready
        made = versions.register(
            session,
            self._caller(event),
            project,
            ready.model.rpartition("/")[2],
            artifact,
            job=event.job,
            base_model=ready.base_model,
            dataset_version=ready.dataset_version,
            metrics=outputs.metrics_of(artifact) if ready.targets else ready.final_metrics,
            said=records.inputs_of(session, project, job_id, [target.name for target in ready.targets]),
        )
        good = events_pb2.ModelVersionRegistered(job=event.job, version=made)
        self._answer(session, project, job_id, event, "version_registered", "model_version_registered", good)
        return True

    def _note_checkpoint(
        self, session: Session, project: str, job_id: str, event: jobs_events_pb2.JobEvent
    ) -> None:
        if self._note(session, event):
            said = getattr(event, str(event.WhichOneof("event"))).checkpoint
            versions.enter_checkpoint(session, project, job_id, said, event.revision)

    def _note(self, session: Session, event: jobs_events_pb2.JobEvent) -> bool:
        """Notes that an event is answered now; False when it was before."""
        if _answered(session, event.event_id):
            return False
        now = self._clock.now()
        session.execute(delete(ANSWERED).where(ANSWERED.c.time < now - _KEPT))
        session.execute(insert(ANSWERED).values(event_id=event.event_id, time=now))
        return True

    def _answer(
        self,
        session: Session,
        project: str,
        job_id: str,
        event: jobs_events_pb2.JobEvent,
        name: str,
        kind: str,
        answer: Message,
    ) -> None:
        subject = subjects.job_event(project, job_id, name)
        say(session, self._caller(event), subject, kind, answer, resource=event.job, epoch=event.epoch)


def _answered(session: Session, event_id: str) -> bool:
    query = select(ANSWERED.c.event_id).where(ANSWERED.c.event_id == event_id)
    return session.execute(query).one_or_none() is not None


def _verified(blobs: BlobStore, digest: str, allowed: frozenset[str]) -> Manifest:
    """Hashes every file of an output again, and refuses files that could run code."""
    artifact = manifest.verify(blobs, digest)
    if artifact.kind != "model":
        raise FailedPrecondition(
            "ARTIFACT_CORRUPT", "the output is no model", field="manifest_digest", value=artifact.kind
        )
    models.refuse_code(blobs, artifact, allowed)
    return artifact


def _check_data(
    session: Session, project: str, spec: spec_pb2.JobSpec, good: events_pb2.JobInputsValidated
) -> list[common_pb2.ErrorDetail]:
    """Pins the dataset version and the prompt template; returns what is wrong."""
    try:
        data = store.resolve_dataset(session, project, spec.dataset)
    except NotFound as error:
        return [detail(error, "spec.dataset")]
    good.dataset_version, good.dataset_digest, good.num_rows = data.name, data.digest, data.num_rows
    trains = not spec.HasField("evaluation")
    if not trains and not spec.prompt_template:
        return []
    try:
        template = prompts.check_inputs(session, project, spec.prompt_template, data, trains)
    except (NotFound, FailedPrecondition, InvalidArgument) as error:
        return [detail(error, "spec.prompt_template")]
    if template is not None:
        good.prompt_template, good.prompt_template_digest = template.name, template.digest
    return []


def _checkpoint_error(blobs: BlobStore, created: jobs_events_pb2.JobCreated) -> FailedPrecondition | None:
    """Hashes every file of the checkpoint that a fork begins from; returns what is wrong with it."""
    if not created.HasField("forked_from"):
        return None
    origin = created.forked_from
    try:
        if manifest.verify(blobs, origin.digest).kind == "checkpoint":
            return None
        problem = "it is no checkpoint"
    except (NotFound, FailedPrecondition, InvalidArgument) as error:
        problem = error.message
    return FailedPrecondition(
        "CHECKPOINT_DAMAGED",
        f"the checkpoint of {origin.job} at step {origin.step} cannot be used: {problem}",
        field="step",
        value=origin.step,
        remedy="fork another checkpoint; `tunesmith checkpoints list JOB` shows them",
    )


def _check_origin(blobs: BlobStore, origin: jobs_events_pb2.ForkOrigin, digest: str) -> None:
    """Refuses a checkpoint whose weights were trained on another base model than the one of that name now."""
    trained_on = manifest.read(blobs, origin.digest).properties.get("base_model_digest", "")
    if trained_on and trained_on != digest:
        raise FailedPrecondition(
            "CHECKPOINT_FOREIGN",
            f"the checkpoint of {origin.job} was trained on base model {trained_on[:12]}, not {digest[:12]}",
            field="step",
            value=origin.step,
            remedy="import the base model it was trained on under this name again, or submit a new job",
        )


def detail(error: TunesmithError, field: str) -> common_pb2.ErrorDetail:
    """An error as it stands in events."""
    return common_pb2.ErrorDetail(
        reason=error.reason, message=error.message, field=field, value=error.value, remedy=error.remedy
    )
