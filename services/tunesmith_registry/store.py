"""Datasets and base models in the database: find, list, enter."""

import difflib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Table, insert, select, update
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import datasets_pb2, events_pb2, models_pb2
from tunesmith.errors import AlreadyExists, InvalidArgument, NotFound
from tunesmith_kit import outbox, subjects
from tunesmith_kit.ids import new_ulid
from tunesmith_registry.change import Caller, say
from tunesmith_registry.models import BaseModelFacts
from tunesmith_registry.tables import BASE_MODELS, DATASET_VERSIONS, DATASETS

Rows = Sequence[Row[Any]]


def did_you_mean(session: Session, table: Table, project: str, wanted: str) -> str:
    """A hint at ids that look like the one wanted; empty when none does."""
    ids = session.execute(select(table.c.id).where(table.c.project == project)).scalars().all()
    near = difflib.get_close_matches(wanted, ids, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}? " if near else ""


def page(session: Session, table: Table, project: str, after: str, size: int) -> tuple[Rows, str]:
    """Rows of a project by id, and the cursor to the next page; empty when this was the last."""
    query = select(table).where(table.c.project == project, table.c.id > after).order_by(table.c.id)
    rows = session.execute(query.limit(size + 1)).all()
    return rows[:size], rows[size - 1].id if len(rows) > size else ""


def version_page(
    session: Session, table: Table, owner: Any, before: str, size: int
) -> tuple[list[bytes], str]:
    """Bodies of versions, newest first, and the cursor to the next page; `owner` picks whose versions."""
    query = select(table.c.version, table.c.body).where(owner).order_by(table.c.version.desc())
    if before:
        query = query.where(table.c.version < cursor_numbers(before, 1)[0])
    rows = session.execute(query.limit(size + 1)).all()
    return [row.body for row in rows[:size]], str(rows[size - 1].version) if len(rows) > size else ""


def cursor_numbers(cursor: str, count: int) -> list[int]:
    """The numbers in a cursor; `InvalidArgument` when they are not there."""
    parts = cursor.split(".")
    if len(parts) != count or not all(part.isdecimal() and len(part) < 19 for part in parts):
        raise InvalidArgument(
            "PAGE_TOKEN_INVALID",
            "the page token was not made for this list",
            field="page_token",
            value=cursor,
            remedy="give back next_page_token as it was, or leave it out for the first page",
        )
    return [int(part) for part in parts]


def version_number(text: str) -> int:
    """A version's number in a name; 0, which no version has, when it is none."""
    return int(text) if text.isdecimal() and len(text) < 19 else 0


def dataset_row(session: Session, project: str, dataset_id: str) -> Row[Any]:
    """Returns a dataset's row; `NotFound` with ids that look alike."""
    query = select(DATASETS).where(DATASETS.c.project == project, DATASETS.c.id == dataset_id)
    row = session.execute(query).one_or_none()
    if row is None:
        hint = did_you_mean(session, DATASETS, project, dataset_id)
        raise NotFound(
            "DATASET_NOT_FOUND",
            f"there is no dataset {dataset_id}",
            field="dataset",
            value=dataset_id,
            remedy=f"{hint}`tunesmith datasets list` lists them",
        )
    return row


def dataset(session: Session, row: Row[Any]) -> datasets_pb2.Dataset:
    """Returns a dataset with its newest version."""
    return datasets_pb2.Dataset(
        name=f"projects/{row.project}/datasets/{row.id}",
        dataset_id=row.id,
        description=row.description,
        latest=dataset_version(session, row, row.latest_version),
        create_time=outbox.timestamp(row.create_time),
    )


def dataset_version(session: Session, row: Row[Any], version: int) -> datasets_pb2.DatasetVersion:
    """Returns one version of a dataset; `NotFound` when it has no such version."""
    version_of = DATASET_VERSIONS.c
    query = select(version_of.body).where(
        version_of.project == row.project, version_of.dataset_id == row.id, version_of.version == version
    )
    body = session.execute(query).scalar_one_or_none()
    if body is None:
        raise NotFound(
            "DATASET_NOT_FOUND",
            f"the dataset {row.id} has no version {version}",
            field="dataset",
            value=f"{row.id}@{version}",
            remedy=f"its newest version is {row.latest_version}",
        )
    return datasets_pb2.DatasetVersion.FromString(body)


def resolve_dataset(session: Session, project: str, wanted: str) -> datasets_pb2.DatasetVersion:
    """Returns the version that `id` or `id@version` means."""
    dataset_id, _, version = wanted.partition("@")
    row = dataset_row(session, project, dataset_id)
    return dataset_version(session, row, version_number(version) if version else row.latest_version)


def enter_dataset(
    session: Session,
    caller: Caller,
    project: str,
    dataset_id: str,
    description: str,
    made: datasets_pb2.DatasetVersion,
) -> datasets_pb2.DatasetVersion:
    """Enters stored content as the next version, or returns the version that has the same content.

    `made` has the digest and all that the content itself tells; the rest is filled in here.
    """
    of, key = DATASET_VERSIONS.c, (project, dataset_id)
    row = session.execute(
        select(DATASETS).where(DATASETS.c.project == project, DATASETS.c.id == dataset_id)
    ).one_or_none()
    same = select(of.body).where(of.project == key[0], of.dataset_id == key[1], of.digest == made.digest)
    known = session.execute(same).scalar_one_or_none()
    if known is not None:
        return datasets_pb2.DatasetVersion.FromString(known)
    version = row.latest_version + 1 if row else 1
    uid = row.uid if row else new_ulid()
    _put_dataset(session, row, key, uid, description, version, caller.now)
    base = f"projects/{project}/datasets/{dataset_id}/versions"
    body = datasets_pb2.DatasetVersion()
    body.CopyFrom(made)
    body.name, body.version, body.creator = f"{base}/{version}", version, caller.actor
    body.parent = f"{base}/{row.latest_version}" if row else ""
    body.create_time.FromDatetime(caller.now)
    session.execute(
        insert(DATASET_VERSIONS).values(
            project=project,
            dataset_id=dataset_id,
            version=version,
            digest=made.digest,
            body=body.SerializeToString(),
        )
    )
    event = events_pb2.DatasetVersionCreated(version=body)
    subject = subjects.event(project, "dataset", uid, "version_created")
    say(session, caller, subject, "dataset_version_created", event, resource=body.name)
    return body


def _put_dataset(
    session: Session,
    row: Row[Any] | None,
    key: tuple[str, str],
    uid: str,
    description: str,
    version: int,
    now: datetime,
) -> None:
    project, dataset_id = key
    if row is None:
        session.execute(
            insert(DATASETS).values(
                project=project,
                id=dataset_id,
                uid=uid,
                description=description,
                latest_version=version,
                create_time=now,
            )
        )
        return
    session.execute(
        update(DATASETS)
        .where(DATASETS.c.project == project, DATASETS.c.id == dataset_id)
        .values(latest_version=version, description=description or row.description)
    )


def base_model(session: Session, project: str, base_model_id: str) -> models_pb2.BaseModel:
    """Returns a base model; `NotFound` with ids that look alike."""
    query = select(BASE_MODELS.c.body).where(
        BASE_MODELS.c.project == project, BASE_MODELS.c.id == base_model_id
    )
    body = session.execute(query).scalar_one_or_none()
    if body is None:
        hint = did_you_mean(session, BASE_MODELS, project, base_model_id)
        raise NotFound(
            "BASE_MODEL_NOT_FOUND",
            f"there is no base model {base_model_id}",
            field="base_model",
            value=base_model_id,
            remedy=f"{hint}`tunesmith models bases` lists them",
        )
    return models_pb2.BaseModel.FromString(body)


def enter_base_model(
    session: Session,
    caller: Caller,
    project: str,
    request: models_pb2.ImportBaseModelRequest,
    facts: BaseModelFacts,
) -> models_pb2.BaseModel:
    """Enters a base model, or returns it when the same files are there under this id.

    Raises:
        AlreadyExists: the id stands for other files.
    """
    query = select(BASE_MODELS).where(
        BASE_MODELS.c.project == project, BASE_MODELS.c.id == request.base_model_id
    )
    row = session.execute(query).one_or_none()
    if row is not None:
        if row.digest == facts.digest:
            return models_pb2.BaseModel.FromString(row.body)
        raise AlreadyExists(
            "NAME_TAKEN",
            f"the base model {request.base_model_id} has other files",
            field="base_model_id",
            value=request.base_model_id,
            remedy="choose another id; a base model never changes",
        )
    body = models_pb2.BaseModel(
        name=f"projects/{project}/baseModels/{request.base_model_id}",
        base_model_id=request.base_model_id,
        digest=facts.digest,
        manifest=facts.manifest.proto(),
        architecture=facts.architecture,
        num_parameters=facts.num_parameters,
        context_length=facts.context_length,
        size_bytes=facts.manifest.size_bytes,
        license=request.license,
        source=request.source,
        create_time=outbox.timestamp(caller.now),
        facts=request.facts,
        warnings=facts.warnings,
    )
    uid = new_ulid()
    session.execute(
        insert(BASE_MODELS).values(
            project=project,
            id=request.base_model_id,
            uid=uid,
            digest=facts.digest,
            body=body.SerializeToString(),
        )
    )
    event = events_pb2.BaseModelImported(base_model=body)
    subject = subjects.event(project, "model", uid, "base_model_imported")
    say(session, caller, subject, "base_model_imported", event, resource=body.name)
    return body
