"""What the jobs service hears: the registry's answers about inputs and outputs."""

import logging

from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.registry.v1 import events_pb2
from tunesmith_jobs import machine
from tunesmith_jobs.change import JobChange
from tunesmith_jobs.store import find
from tunesmith_kit import names
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database

log = logging.getLogger(__name__)
HEARD = (
    "inputs_validated",
    "inputs_rejected",
    "version_registered",
    "version_rejected",
    "evaluation_completed",
)


_ABOUT_A_JOB = (
    "job_inputs_rejected",
    "model_version_registered",
    "model_version_rejected",
    "evaluation_completed",
)


class RegistryAnswers:
    """Applies each answer once: it counts only in the state that waits for it."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock

    async def hear(self, event: events_pb2.RegistryEvent) -> None:
        """Takes one event over."""
        kind = event.WhichOneof("event")
        if kind == "job_inputs_validated":
            job = event.job_inputs_validated.job
        elif kind in _ABOUT_A_JOB:
            job = getattr(event, kind).job
        else:
            return
        project, job_id = names.parse("projects/*/jobs/*", job, "job")
        await self._db.write(lambda session: self._apply(session, project, job_id, kind, event))

    def _apply(
        self, session: Session, project: str, job_id: str, kind: str, event: events_pb2.RegistryEvent
    ) -> None:
        row = find(session, project, job_id, even_deleted=True)
        change = JobChange(session, row, "service/registry", self._clock.now())
        waits_for_inputs = kind in ("job_inputs_validated", "job_inputs_rejected")
        if change.job.state != (machine.VALIDATING if waits_for_inputs else machine.FINALIZING):
            return  # heard before, or the user cancelled meanwhile
        if waits_for_inputs:
            _take_inputs(change, event)
        else:
            _take_output(change, event)
        change.save()


def _take_inputs(change: JobChange, event: events_pb2.RegistryEvent) -> None:
    if event.HasField("job_inputs_validated"):
        good = event.job_inputs_validated
        change.job.base_model.name, change.job.base_model.digest = good.base_model, good.base_model_digest
        change.job.ClearField("targets")
        change.job.targets.extend(good.targets)
        change.job.dataset.name, change.job.dataset.digest = good.dataset_version, good.dataset_digest
        if good.prompt_template_digest:
            template = change.job.prompt_template
            template.name, template.digest = good.prompt_template, good.prompt_template_digest
        change.move(machine.after_inputs(valid=True, desired=change.job.desired))
        return
    errors = event.job_inputs_rejected.errors
    failure = state_pb2.Failure(
        failure_class=state_pb2.FAILURE_CLASS_INVALID_INPUT,
        reason=errors[0].reason if errors else "INVALID_INPUT",
        message="; ".join(error.message for error in errors),
        remedy="; ".join(error.remedy for error in errors if error.remedy),
    )
    change.move(machine.after_inputs(valid=False), failure)


def _take_output(change: JobChange, event: events_pb2.RegistryEvent) -> None:
    if event.HasField("model_version_registered"):
        change.job.model_version = event.model_version_registered.version.name
        change.move(machine.after_output(verified=True), version=change.job.model_version)
        return
    if event.HasField("evaluation_completed"):
        change.job.evaluation = event.evaluation_completed.evaluation.name
        change.move(machine.after_output(verified=True), evaluation=change.job.evaluation)
        return
    error = event.model_version_rejected.error
    failure = state_pb2.Failure(
        failure_class=state_pb2.FAILURE_CLASS_FINALIZE,
        reason=error.reason,
        message=error.message,
        remedy=error.remedy or "the weights are kept; submit the job again to make them anew",
    )
    change.move(machine.after_output(verified=False), failure)
