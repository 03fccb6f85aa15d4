"""Versions made of uploaded files, or of a checkpoint that a program of its owner's saved."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import events_pb2, models_pb2, versions_pb2
from tunesmith.errors import FailedPrecondition, InvalidArgument
from tunesmith_kit import manifest, names, subjects
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.db import Database
from tunesmith_kit.manifest import Manifest, ManifestFile
from tunesmith_registry import store, targets, versions
from tunesmith_registry.change import Caller, say
from tunesmith_registry.tables import MODEL_VERSIONS

_METRIC = "metric."  # how the properties of an external checkpoint name its numbers


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the files of a version come from: its files, the checkpoint, and the numbers noted with that."""

    files: Sequence[ManifestFile]
    checkpoint: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


async def origin(
    db: Database, blobs: BlobStore, project: str, request: versions_pb2.RegisterModelVersionRequest
) -> Origin:
    """Returns what a request names.

    Raises:
        InvalidArgument: it names both files and a checkpoint, or neither.
        NotFound: there is no such checkpoint, or its manifest was never uploaded.
        FailedPrecondition: the checkpoint was let go, or is one of a job of the platform.
    """
    if bool(request.files) == bool(request.checkpoint):
        raise InvalidArgument(
            "FIELD_INVALID", "either files or a checkpoint make a version", field="files",
            value=len(request.files), remedy="upload files and name them, or name a checkpoint",
        )  # fmt: skip
    if request.files:
        return Origin([ManifestFile(file.path, file.size_bytes, file.sha256) for file in request.files])
    owner, job_id, digest = names.parse("projects/*/jobs/*/checkpoints/*", request.checkpoint, "checkpoint")
    if owner != project:
        raise InvalidArgument(
            "NAME_INVALID", "the checkpoint belongs to another project", field="checkpoint",
            value=request.checkpoint, remedy=f"name one of projects/{project}",
        )  # fmt: skip
    found = await db.read(lambda session: targets.checkpoint(session, project, job_id, digest))
    if not found.external:
        raise FailedPrecondition(
            "RUN_NOT_EXTERNAL", "the checkpoint is one of a job of the platform: it holds more than a model",
            field="checkpoint", value=request.checkpoint, remedy="`tunesmith convert` takes out the weights",
        )  # fmt: skip
    kept = await asyncio.to_thread(manifest.read, blobs, digest)
    return Origin(kept.files, found.name, _numbers(kept.properties))


def _numbers(properties: Mapping[str, str]) -> dict[str, float]:
    found = {}
    for name, text in properties.items():
        if name.startswith(_METRIC):
            try:
                found[name.removeprefix(_METRIC)] = float(text)
            except ValueError:
                continue
    return {name: value for name, value in found.items() if math.isfinite(value)}


def enter(
    session: Session,
    caller: Caller,
    project: str,
    model_id: str,
    artifact: Manifest,
    base: models_pb2.BaseModel,
    request: versions_pb2.RegisterModelVersionRequest,
    made_from: Origin,
) -> models_pb2.ModelVersion:
    """Enters checked files as the next version, or returns the version that has the same content."""
    known = _same(session, project, model_id, artifact.digest)
    if known is not None:
        return known
    said = models_pb2.ModelVersion(
        description=request.description,
        labels=dict(request.labels),
        base_model_digest=base.digest,
        derived_from=made_from.checkpoint,
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
        metrics=made_from.metrics,
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
