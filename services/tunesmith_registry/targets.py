"""Targets: whatever can be evaluated, chatted with or exported, found by its resource name."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import models_pb2
from tunesmith.errors import FailedPrecondition, InvalidArgument, NotFound
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.db import Database
from tunesmith_registry import aliases, store, versions
from tunesmith_registry.tables import BASE_MODELS, CHECKPOINTS, MODEL_VERSIONS

LATEST = "latest"
_STAGES: Mapping[str, models_pb2.ModelStage.ValueType] = {
    "production": models_pb2.MODEL_STAGE_PRODUCTION,
    "staging": models_pb2.MODEL_STAGE_STAGING,
}
_FORM = re.compile(
    r"projects/(?P<project>[^/]+)/(?:baseModels/(?P<base>[^/]+)"
    r"|models/(?P<model>[^/]+)/versions/(?P<version>[^/]+)"
    r"|jobs/(?P<job>[^/]+)/checkpoints/(?P<checkpoint>[^/]+))"
)


class Kind(StrEnum):
    """What the digest of a target names."""

    BASE = "base"
    ADAPTER = "adapter"
    FULL = "full"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers.

    `name` is pinned: an alias or a stage has become a number. `digest` is that of the manifest of adapter,
    full model or checkpoint, empty for a base model. `properties` are those of that manifest.
    """

    name: str
    kind: Kind
    base_model: str
    base_digest: str
    digest: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)


async def find(db: Database, blobs: BlobStore, project: str, name: str) -> Target:
    """Returns the target of a name; everything is filled in.

    Raises:
        InvalidArgument: the name has no form of a target, or is another project's.
        NotFound: there is no such thing, or its content is not stored.
        FailedPrecondition: the checkpoint was let go, or what is stored of it is damaged.
    """
    target = await db.read(lambda session: resolve(session, project, name))
    if target.kind is not Kind.CHECKPOINT:
        return target
    # Whose checkpoint it is stands in its manifest only.
    properties = (await asyncio.to_thread(manifest.read, blobs, target.digest)).properties
    base_digest = properties.get("base_model_digest", "")
    base = await db.read(lambda session: _base_of(session, project, base_digest))
    return replace(target, base_model=base, base_digest=base_digest, properties=properties)


def resolve(session: Session, project: str, name: str) -> Target:
    """As `find`, from the database alone: of a checkpoint, base model and properties stay empty."""
    match = _FORM.fullmatch(name)
    if match is None or not all(part is None or _is_part(part) for part in match.groups()):
        raise InvalidArgument(
            "NAME_INVALID",
            "this names no base model, model version or checkpoint",
            field="targets",
            value=name,
            remedy="use projects/P/baseModels/B, projects/P/models/M/versions/V or "
            "projects/P/jobs/J/checkpoints/DIGEST",
        )
    if match["project"] != project:
        raise InvalidArgument(
            "NAME_INVALID",
            f"this belongs to the project {match['project']}, not to {project}",
            field="targets",
            value=name,
            remedy=f"name something of projects/{project}, or ask in the other project",
        )
    if match["base"]:
        base = store.base_model(session, project, match["base"])
        return Target(base.name, Kind.BASE, base.name, base.digest)
    if match["model"]:
        return _version(session, project, match["model"], match["version"])
    return _checkpoint(session, project, match["job"], match["checkpoint"])


def version_of(session: Session, project: str, model_id: str, wanted: str) -> models_pb2.ModelVersion:
    """Returns the version that a number, `latest`, a stage or an alias means; `NotFound` when none does."""
    row = versions.model_row(session, project, model_id)
    if wanted == LATEST:
        return versions.version(session, project, model_id, row.latest_version)
    if wanted in _STAGES:
        return _in_stage(session, project, model_id, wanted)
    return versions.version(session, project, model_id, _number(session, project, model_id, wanted))


def _is_part(text: str) -> bool:
    return re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,127}", text) is not None


def _number(session: Session, project: str, model_id: str, wanted: str) -> int:
    number = store.version_number(wanted) or aliases.number_of(session, project, model_id, wanted)
    if number:
        return number
    raise NotFound(
        "MODEL_NOT_FOUND",
        f"the model {model_id} has no version or alias {wanted}",
        field="targets",
        value=f"{model_id}/versions/{wanted}",
        remedy=f"use a number, an alias, a stage or {LATEST}; `tunesmith models show {model_id}` lists them",
    )


def _in_stage(session: Session, project: str, model_id: str, stage: str) -> models_pb2.ModelVersion:
    of = MODEL_VERSIONS.c
    query = select(of.body).where(
        of.project == project, of.model_id == model_id, of.stage == _STAGES[stage]
    )  # fmt: skip
    body = session.execute(query.order_by(of.version.desc()).limit(1)).scalar_one_or_none()
    if body is None:
        raise NotFound(
            "MODEL_NOT_FOUND",
            f"no version of the model {model_id} is in stage {stage}",
            field="targets",
            value=f"{model_id}/versions/{stage}",
            remedy=f"name a version by its number; `tunesmith models show {model_id}` lists them",
        )
    return models_pb2.ModelVersion.FromString(body)


def _version(session: Session, project: str, model_id: str, wanted: str) -> Target:
    found = version_of(session, project, model_id, wanted)
    properties = dict(found.manifest.properties)
    base_id = found.base_model.rpartition("/")[2]
    kind = Kind.FULL if properties.get("adapter") == "full" else Kind.ADAPTER
    base_digest = properties.get("base_model_digest", "")
    if not base_digest:
        base_digest = store.base_model(session, project, base_id).digest
    base_name = f"projects/{project}/baseModels/{base_id}"
    return Target(found.name, kind, base_name, base_digest, found.digest, properties)


def _checkpoint(session: Session, project: str, job_id: str, digest: str) -> Target:
    found = checkpoint(session, project, job_id, digest)
    if found.external:
        raise FailedPrecondition(
            "CHECKPOINT_EXTERNAL",
            f"the checkpoint at step {found.step} is of a program that the platform did not start",
            field="targets",
            value=digest,
            remedy="if it is an adapter or a model, `tunesmith models register` makes a version of it",
        )
    return Target(found.name, Kind.CHECKPOINT, "", "", digest)


def checkpoint(session: Session, project: str, job_id: str, digest: str) -> models_pb2.Checkpoint:
    """Returns a checkpoint that is kept.

    Raises:
        NotFound: the job has no such checkpoint.
        FailedPrecondition: it was let go.
    """
    of = CHECKPOINTS.c
    bodies = session.execute(select(of.body).where(of.project == project, of.job_id == job_id)).scalars()
    for body in bodies:
        found = models_pb2.Checkpoint.FromString(body)
        if found.digest == digest:
            break
    else:
        raise NotFound(
            "CHECKPOINT_NOT_FOUND",
            f"the job {job_id} has no checkpoint {digest[:12]}",
            field="targets",
            value=digest,
            remedy=f"`tunesmith checkpoints list {job_id}` lists them",
        )
    if found.expired:
        raise FailedPrecondition(
            "CHECKPOINT_MISSING",
            f"the checkpoint at step {found.step} was let go by the retention rules",
            field="targets",
            value=digest,
            remedy=f"`tunesmith checkpoints list {job_id}` lists those that are kept; pin what must stay",
        )
    return found


def _base_of(session: Session, project: str, digest: str) -> str:
    of = BASE_MODELS.c
    query = select(of.id).where(of.project == project, of.digest == digest).order_by(of.id).limit(1)
    base_id = session.execute(query).scalar_one_or_none()
    if base_id is None:
        raise NotFound(
            "BASE_MODEL_NOT_FOUND",
            f"the base model {digest[:12] or 'of the checkpoint'} is not in this project",
            field="targets",
            value=digest,
            remedy="import the base model it was trained on; `tunesmith models bases` lists those here",
        )
    return f"projects/{project}/baseModels/{base_id}"
