"""Versions made of uploaded files."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import events_pb2, models_pb2, versions_pb2
from tunesmith_kit import subjects
from tunesmith_kit.manifest import Manifest
from tunesmith_registry import store, versions
from tunesmith_registry.change import Caller, say
from tunesmith_registry.tables import MODEL_VERSIONS


def enter(
    session: Session,
    caller: Caller,
    project: str,
    model_id: str,
    artifact: Manifest,
    base: models_pb2.BaseModel,
    request: versions_pb2.RegisterModelVersionRequest,
) -> models_pb2.ModelVersion:
    """Enters checked files as the next version, or returns the version that has the same content."""
    known = _same(session, project, model_id, artifact.digest)
    if known is not None:
        return known
    said = models_pb2.ModelVersion(
        description=request.description, labels=dict(request.labels), base_model_digest=base.digest
    )
    data = store.resolve_dataset(session, project, request.dataset) if request.dataset else None
    if data is not None:
        said.dataset_digest = data.digest
    made = versions.register(
        session,
        caller,
        project,
        model_id,
        artifact,
        job="",
        base_model=base.name,
        dataset_version=data.name if data is not None else "",
        metrics={},
        said=said,
    )
    row = versions.model_row(session, project, model_id)
    subject = subjects.event(project, "model", row.uid, "version_registered")
    event = events_pb2.ModelVersionRegistered(version=made)
    say(session, caller, subject, "model_version_registered", event, resource=made.name)
    return made


def _same(session: Session, project: str, model_id: str, digest: str) -> models_pb2.ModelVersion | None:
    of = MODEL_VERSIONS.c
    query = select(of.body).where(of.project == project, of.model_id == model_id)
    for body in session.execute(query).scalars():
        version = models_pb2.ModelVersion.FromString(body)
        if version.digest == digest:
            return version
    return None
