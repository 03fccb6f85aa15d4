"""What people say of versions and base models, and their end."""

from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import events_pb2, models_pb2, versions_pb2
from tunesmith.errors import FailedPrecondition, InvalidArgument
from tunesmith_kit import subjects
from tunesmith_registry import aliases, store, transitions, versions
from tunesmith_registry.change import Caller, say
from tunesmith_registry.tables import BASE_MODELS, MODEL_VERSIONS

_MOST_LABELS = 64


def change_version(
    session: Session,
    caller: Caller,
    version: models_pb2.ModelVersion,
    request: versions_pb2.UpdateModelVersionRequest,
) -> models_pb2.ModelVersion:
    """Changes description, labels and whether a version is kept."""
    _, project, _, model_id, *_ = version.name.split("/")
    before = version.SerializeToString(deterministic=True)
    if request.HasField("description"):
        version.description = request.description
    if request.HasField("pinned"):
        version.pinned = request.pinned
    for key in request.remove_labels:
        version.labels.pop(key, None)
    for key, value in request.set_labels.items():
        version.labels[key] = value
    if len(version.labels) > _MOST_LABELS:
        raise InvalidArgument(
            "FIELD_INVALID",
            f"a version has at most {_MOST_LABELS} labels",
            field="set_labels",
            value=len(version.labels),
            remedy="take some away with remove_labels",
        )
    if version.SerializeToString(deterministic=True) != before:
        versions.put(session, project, model_id, version)
        _say_version(session, caller, project, model_id, "version_updated", version)
    return version


def delete_version(session: Session, caller: Caller, version: models_pb2.ModelVersion, reason: str) -> None:
    """Deletes a version; its content goes with the next garbage collection.

    Raises:
        FailedPrecondition: it is in Production, pinned, named by an alias, or the newest of its model.
    """
    _, project, _, model_id, *_ = version.name.split("/")
    problem = why_kept(session, project, model_id, version)
    if problem:
        raise in_use(f"{model_id}@{version.version} {problem}", version.name, "mend that first")
    of = MODEL_VERSIONS.c
    session.execute(
        delete(MODEL_VERSIONS).where(
            of.project == project, of.model_id == model_id, of.version == version.version
        )
    )
    _say_version(session, caller, project, model_id, "version_deleted", version, reason)


def why_kept(session: Session, project: str, model_id: str, version: models_pb2.ModelVersion) -> str:
    """Returns why a version cannot be deleted; empty when it can."""
    if version.stage == transitions.PRODUCTION:
        return "is in Production"
    if version.pinned:
        return "is pinned"
    named = [a for a, n in aliases.of_model(session, project, model_id).items() if n == version.version]
    if named:
        return f"has the alias {named[0]}"
    if version.version == versions.model_row(session, project, model_id).latest_version:
        return "is the newest of its model"
    return ""


def in_use(problem: str, value: str, remedy: str) -> FailedPrecondition:
    """Returns the error of something that others need."""
    return FailedPrecondition("IN_USE", problem, field="name", value=value, remedy=remedy)


def _say_version(
    session: Session,
    caller: Caller,
    project: str,
    model_id: str,
    word: str,
    version: models_pb2.ModelVersion,
    reason: str = "",
) -> None:
    uid = versions.model_row(session, project, model_id).uid
    if word == "version_updated":
        subject = subjects.event(project, "model", uid, "version_updated")
        updated = events_pb2.ModelVersionUpdated(version=version)
        say(session, caller, subject, "model_version_updated", updated, resource=version.name)
    else:
        subject = subjects.event(project, "model", uid, "version_deleted")
        deleted = events_pb2.ModelVersionDeleted(version=version, reason=reason)
        say(session, caller, subject, "model_version_deleted", deleted, resource=version.name)


def change_base(
    session: Session, caller: Caller, project: str, base_id: str, request: models_pb2.UpdateBaseModelRequest
) -> models_pb2.BaseModel:
    """Changes licence, tags, languages and tasks of a base model."""
    base = store.base_model(session, project, base_id)
    if request.HasField("license"):
        base.license = request.license
    for name in ("tags", "languages", "tasks"):
        given = getattr(request, name)
        if given:
            del getattr(base, name)[:]
            getattr(base, name).extend(sorted(set(given)))
    of = BASE_MODELS.c
    session.execute(
        update(BASE_MODELS)
        .where(of.project == project, of.id == base_id)
        .values(body=base.SerializeToString())
    )
    subject = subjects.event(project, "model", _uid(session, project, base_id), "base_model_updated")
    event = events_pb2.BaseModelUpdated(base_model=base)
    say(session, caller, subject, "base_model_updated", event, resource=base.name)
    return base


def delete_base(session: Session, caller: Caller, project: str, base_id: str) -> None:
    """Deletes a base model. Raises `FailedPrecondition` while a version was made from it."""
    base = store.base_model(session, project, base_id)
    users = _users(session, project, base)
    if users:
        more = f" and {len(users) - 3} more" if len(users) > 3 else ""
        raise in_use(
            f"versions were made from {base_id}: {', '.join(users[:3])}{more}",
            base.name,
            "delete them first; an adapter is worth nothing without its base model",
        )
    uid, of = _uid(session, project, base_id), BASE_MODELS.c
    session.execute(delete(BASE_MODELS).where(of.project == project, of.id == base_id))
    subject = subjects.event(project, "model", uid, "base_model_deleted")
    event = events_pb2.BaseModelDeleted(base_model=base)
    say(session, caller, subject, "base_model_deleted", event, resource=base.name)


def _users(session: Session, project: str, base: models_pb2.BaseModel) -> list[str]:
    """Names of versions that need a base model. Bodies are searched for its name: no column has it."""
    of = MODEL_VERSIONS.c
    rows: Any = session.execute(select(of.body).where(of.project == project)).scalars()
    found = (models_pb2.ModelVersion.FromString(body) for body in rows)
    return [
        v.name for v in found if base.name in (v.base_model, f"projects/{project}/baseModels/{v.base_model}")
    ]


def _uid(session: Session, project: str, base_id: str) -> str:
    of = BASE_MODELS.c
    uid: str = session.execute(select(of.uid).where(of.project == project, of.id == base_id)).scalar_one()
    return uid
