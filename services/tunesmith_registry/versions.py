"""Models, their versions and stages, and the checkpoints of jobs, in the database."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, and_, insert, or_, select, update
from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.registry.v1 import events_pb2, models_pb2, stages_pb2
from tunesmith.errors import NotFound
from tunesmith_kit import outbox, subjects
from tunesmith_kit.ids import new_ulid
from tunesmith_kit.manifest import Manifest
from tunesmith_registry import transitions
from tunesmith_registry.change import Caller, say
from tunesmith_registry.store import cursor_numbers, did_you_mean
from tunesmith_registry.tables import CHECKPOINTS, MODEL_VERSIONS, MODELS, STAGE_CHANGES


def model_row(session: Session, project: str, model_id: str) -> Row[Any]:
    """Returns a model's row; `NotFound` with ids that look alike."""
    query = select(MODELS).where(MODELS.c.project == project, MODELS.c.id == model_id)
    row = session.execute(query).one_or_none()
    if row is None:
        hint = did_you_mean(session, MODELS, project, model_id)
        raise NotFound(
            "MODEL_NOT_FOUND",
            f"there is no model {model_id}",
            field="name",
            value=model_id,
            remedy=f"{hint}`tunesmith models list` lists them",
        )
    return row


def model(session: Session, row: Row[Any]) -> models_pb2.Model:
    """Returns a model with its newest version and the one in Production."""
    found = models_pb2.Model(
        name=f"projects/{row.project}/models/{row.id}",
        model_id=row.id,
        latest=version(session, row.project, row.id, row.latest_version),
        create_time=outbox.timestamp(row.create_time),
    )
    for body in in_stage(session, row.project, row.id, models_pb2.MODEL_STAGE_PRODUCTION):
        found.production.CopyFrom(body)
    return found


def version(session: Session, project: str, model_id: str, number: int) -> models_pb2.ModelVersion:
    """Returns one version of a model."""
    of = MODEL_VERSIONS.c
    query = select(of.body).where(_owned(project, model_id), of.version == number)
    body = session.execute(query).scalar_one_or_none()
    if body is None:
        newest = model_row(session, project, model_id).latest_version
        raise NotFound(
            "MODEL_NOT_FOUND",
            f"the model {model_id} has no version {number}",
            field="name",
            value=f"{model_id}/versions/{number}",
            remedy=f"its newest version is {newest}",
        )
    return models_pb2.ModelVersion.FromString(body)


def _owned(project: str, model_id: str) -> Any:
    return and_(MODEL_VERSIONS.c.project == project, MODEL_VERSIONS.c.model_id == model_id)


def owned_versions(session: Session, project: str, model_id: str) -> Any:
    """A condition that picks the versions of an existing model."""
    model_row(session, project, model_id)
    return _owned(project, model_id)


def in_stage(
    session: Session, project: str, model_id: str, stage: models_pb2.ModelStage.ValueType
) -> list[models_pb2.ModelVersion]:
    """Returns the versions of a model that are in a stage."""
    of = MODEL_VERSIONS.c
    query = select(of.body).where(_owned(project, model_id), of.stage == stage)
    return [models_pb2.ModelVersion.FromString(body) for body in session.execute(query).scalars()]


def set_stage(
    session: Session,
    caller: Caller,
    project: str,
    model_id: str,
    number: int,
    stage: models_pb2.ModelStage.ValueType,
    reason: str,
    *,
    rolled_back: bool = False,
) -> models_pb2.ModelVersion:
    """Moves a version to a stage; whatever was Production before becomes Archived.

    Raises:
        InvalidArgument: there is no such stage.
        FailedPrecondition: this stage cannot follow the present one.
    """
    transitions.check_stage(stage)
    row = model_row(session, project, model_id)
    wanted = version(session, project, model_id, number)
    if wanted.stage == stage:
        return wanted
    transitions.check(wanted.stage, stage)
    if stage == models_pb2.MODEL_STAGE_PRODUCTION:
        for old in in_stage(session, project, model_id, stage):
            because = f"version {number} became Production"
            _move(session, caller, row, old, models_pb2.MODEL_STAGE_ARCHIVED, because)
    _move(session, caller, row, wanted, stage, reason, rolled_back=rolled_back)
    return wanted


def _move(
    session: Session,
    caller: Caller,
    row: Row[Any],
    moved: models_pb2.ModelVersion,
    stage: models_pb2.ModelStage.ValueType,
    reason: str,
    *,
    rolled_back: bool = False,
) -> None:
    before, moved.stage = moved.stage, stage
    put(session, row.project, row.id, moved)
    event = events_pb2.ModelVersionStageChanged(version=moved, from_stage=before, reason=reason)
    subject = subjects.event(row.project, "model", row.uid, "stage_changed")
    revision = say(session, caller, subject, "model_version_stage_changed", event, resource=moved.name)
    body = stages_pb2.StageChange(
        version=moved.name,
        from_stage=before,
        to_stage=stage,
        actor=caller.actor,
        reason=reason,
        time=outbox.timestamp(caller.now),
        revision=revision,
        rolled_back=rolled_back,
    )
    session.execute(
        insert(STAGE_CHANGES).values(
            project=row.project,
            model_id=row.id,
            sequence=revision,
            version=moved.version,
            to_stage=stage,
            body=body.SerializeToString(),
        )
    )


def put(session: Session, project: str, model_id: str, changed: models_pb2.ModelVersion) -> None:
    """Writes a version that is known already."""
    stored = models_pb2.ModelVersion()
    stored.CopyFrom(changed)
    del stored.aliases[:]  # they have a table of their own
    session.execute(
        update(MODEL_VERSIONS)
        .where(_owned(project, model_id), MODEL_VERSIONS.c.version == stored.version)
        .values(stage=stored.stage, body=stored.SerializeToString())
    )


def of_job(session: Session, job: str) -> models_pb2.ModelVersion | None:
    """Returns the version a job made, if it is registered."""
    query = select(MODEL_VERSIONS.c.body).where(MODEL_VERSIONS.c.job == job)
    body = session.execute(query).scalar_one_or_none()
    return models_pb2.ModelVersion.FromString(body) if body is not None else None


def register(
    session: Session,
    caller: Caller,
    project: str,
    model_id: str,
    artifact: Manifest,
    *,
    job: str,
    base_model: str,
    dataset_version: str,
    metrics: Mapping[str, float],
    said: models_pb2.ModelVersion | None = None,
) -> models_pb2.ModelVersion:
    """Enters a verified artifact as the next version of a model; of a job's output the same one when it is
    there. `job` of files that were uploaded is empty, and `said` has what else is said of the version."""
    known = of_job(session, job) if job else None
    if known is not None:
        return known
    number = _next_version(session, project, model_id, caller)
    body = models_pb2.ModelVersion(
        name=f"projects/{project}/models/{model_id}/versions/{number}",
        version=number,
        digest=artifact.digest,
        manifest=artifact.proto(),
        stage=models_pb2.MODEL_STAGE_NONE,
        job=job,
        base_model=base_model,
        dataset_version=dataset_version,
        metrics=metrics,
        size_bytes=artifact.size_bytes,
        create_time=outbox.timestamp(caller.now),
        creator=caller.actor,
    )
    if said is not None:
        body.MergeFrom(said)
    session.execute(
        insert(MODEL_VERSIONS).values(
            project=project,
            model_id=model_id,
            version=number,
            stage=body.stage,
            job=job or body.name,
            body=body.SerializeToString(),
        )
    )
    return body


def _next_version(session: Session, project: str, model_id: str, caller: Caller) -> int:
    step = (
        update(MODELS)
        .where(MODELS.c.project == project, MODELS.c.id == model_id)
        .values(latest_version=MODELS.c.latest_version + 1)
        .returning(MODELS.c.latest_version)
    )
    number = session.execute(step).scalar_one_or_none()
    if number is not None:
        return int(number)
    session.execute(
        insert(MODELS).values(
            project=project, id=model_id, uid=new_ulid(), latest_version=1, create_time=caller.now
        )
    )
    return 1


def enter_checkpoint(
    session: Session, project: str, job_id: str, committed: state_pb2.CheckpointRef, revision: int
) -> None:
    """Enters what the jobs service says of a checkpoint, unless something newer is known."""
    of = CHECKPOINTS.c
    place = {"project": project, "job_id": job_id, "epoch": committed.epoch, "step": committed.step}
    here = [of[name] == value for name, value in place.items()]
    known = session.execute(select(of.revision).where(*here)).one_or_none()
    if known is not None and known.revision >= revision:
        return
    body = models_pb2.Checkpoint(
        name=f"projects/{project}/jobs/{job_id}/checkpoints/{committed.digest}",
        step=committed.step,
        epoch=committed.epoch,
        digest=committed.digest,
        size_bytes=committed.size_bytes,
        create_time=committed.create_time,
        eval_loss=committed.eval_loss if committed.HasField("eval_loss") else None,
        pinned=committed.pinned,
        expired=committed.expired,
        external=committed.external,
    )
    said = {"revision": revision, "body": body.SerializeToString()}
    change = insert(CHECKPOINTS).values(**place) if known is None else update(CHECKPOINTS).where(*here)
    session.execute(change.values(**said))


def checkpoint_page(
    session: Session, project: str, job_id: str, before: str, size: int
) -> tuple[list[models_pb2.Checkpoint], str]:
    """Checkpoints of a job, newest first, and the cursor to the next page."""
    of = CHECKPOINTS.c
    query = select(of.epoch, of.step, of.body).where(of.project == project, of.job_id == job_id)
    if before:
        epoch, step = cursor_numbers(before, 2)
        query = query.where(or_(of.epoch < epoch, and_(of.epoch == epoch, of.step < step)))
    rows = session.execute(query.order_by(of.epoch.desc(), of.step.desc()).limit(size + 1)).all()
    cursor = f"{rows[size - 1].epoch}.{rows[size - 1].step}" if len(rows) > size else ""
    return [models_pb2.Checkpoint.FromString(row.body) for row in rows[:size]], cursor
