"""Checks that a version and all it came from are what they were: files, manifests, receipts, signatures."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import datasets_pb2, lineage_pb2, models_pb2
from tunesmith.errors import FailedPrecondition, NotFound, TunesmithError
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.manifest import Manifest
from tunesmith_registry import store
from tunesmith_registry.evaluations.tables import EVALUATION_SCORES, EVALUATIONS
from tunesmith_registry.governance import records
from tunesmith_registry.tables import BASE_MODELS, CHECKPOINTS, DATASET_VERSIONS, RECEIPTS

Item = lineage_pb2.VerifiedItem
_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True)
class Artifact:
    """Something with a manifest: whose it is, its digest, and the digest that stood in its row."""

    resource: str
    digest: str


def artifacts(session: Session, version: models_pb2.ModelVersion) -> list[Artifact]:
    """Returns the version, its base model, its data, the checkpoints kept and its evaluations."""
    _, project, *_ = version.name.split("/")
    found = [Artifact(version.name, version.digest)]
    record = records.of_version(session, version.job)
    found += _base(session, project, version, record)
    found += _data(session, project, version, record)
    found += _checkpoints(session, project, version)
    found += _evaluations(session, project, version)
    return found


def _base(
    session: Session, project: str, version: models_pb2.ModelVersion, record: Any
) -> Iterator[Artifact]:
    if not version.base_model:
        return
    name = f"projects/{project}/baseModels/{version.base_model.rpartition('/')[2]}"
    pinned = version.base_model_digest or (record.base_model_digest if record else "")
    pinned = pinned or version.manifest.properties.get("base_model_digest", "")
    of = BASE_MODELS.c
    query = select(of.digest).where(of.project == project, of.id == name.rpartition("/")[2])
    digest = pinned or session.execute(query).scalar_one_or_none()
    yield Artifact(name, digest or "")


def _data(
    session: Session, project: str, version: models_pb2.ModelVersion, record: Any
) -> Iterator[Artifact]:
    if not version.dataset_version:
        return
    pinned = version.dataset_digest or (record.dataset_digest if record else "")
    if not pinned:
        _, _, _, dataset_id, _, number = version.dataset_version.split("/")
        of = DATASET_VERSIONS.c
        query = select(of.body).where(
            of.project == project,
            of.dataset_id == dataset_id,
            of.version == store.version_number(number),
        )
        body = session.execute(query).scalar_one_or_none()
        pinned = datasets_pb2.DatasetVersion.FromString(body).digest if body else ""
    yield Artifact(version.dataset_version, pinned)


def _checkpoints(session: Session, project: str, version: models_pb2.ModelVersion) -> Iterator[Artifact]:
    of = CHECKPOINTS.c
    job_id = version.job.rpartition("/")[2]
    query = select(of.body).where(of.project == project, of.job_id == job_id)
    for body in session.execute(query.order_by(of.epoch, of.step)).scalars():
        kept = models_pb2.Checkpoint.FromString(body)
        if not kept.expired:
            yield Artifact(kept.name, kept.digest)


def _evaluations(session: Session, project: str, version: models_pb2.ModelVersion) -> Iterator[Artifact]:
    scores, of = EVALUATION_SCORES.c, EVALUATIONS.c
    ids = select(scores.evaluation).where(scores.project == project, scores.target == version.name)
    query = select(of.id, of.digest).where(of.project == project, of.id.in_(ids))
    for row in session.execute(query.order_by(of.revision)):
        yield Artifact(f"projects/{project}/evaluations/{row.id}", row.digest)


def receipt_items(session: Session, version: models_pb2.ModelVersion) -> list[lineage_pb2.VerifiedItem]:
    """Compares the row of a version with its receipts: made when, with which digest, moved to which stage."""
    _, project, *_ = version.name.split("/")
    of = RECEIPTS.c
    query = select(of.sequence, of.kind, of.body).where(of.project == project, of.resource == version.name)
    rows = session.execute(query.order_by(of.sequence)).all()
    made = [row for row in rows if row.kind == "model_version_registered"]
    if not made:
        return [_unproven(session, project, version)]
    items = []
    said = json.loads(made[0].body)["event"].get("version", {})
    wanted = {"digest": said.get("digest", ""), "base_model": said.get("base_model", "")}
    wanted |= {"dataset_version": said.get("dataset_version", ""), "job": said.get("job", "")}
    for name, value in wanted.items():
        found = getattr(version, name)
        message = "" if found == value else f"{name} is not what the receipt {made[0].sequence} says"
        items.append(_item(version.name, value, found, message))
    moves = [row for row in rows if row.kind == "model_version_stage_changed"]
    if moves:
        stage = json.loads(moves[-1].body)["event"]["version"].get("stage", "")
        found = models_pb2.ModelStage.Name(version.stage)
        message = "" if found == stage else f"the stage is not what the receipt {moves[-1].sequence} says"
        items.append(_item(version.name, stage, found, message))
    return items


def _item(resource: str, wanted: str, found: str, message: str) -> lineage_pb2.VerifiedItem:
    return Item(resource=resource, wanted=wanted, found=found, intact=not message, message=message)


def _unproven(session: Session, project: str, version: models_pb2.ModelVersion) -> lineage_pb2.VerifiedItem:
    """A version without a receipt is damage, unless receipts were not yet kept when it was registered."""
    of = RECEIPTS.c
    query = select(of.body).where(of.project == project).order_by(of.sequence).limit(1)
    first = session.execute(query).scalar_one_or_none()
    item = Item(resource=version.name, wanted="a receipt of its registration")
    made = version.create_time.ToJsonString()
    item.intact = first is None or made < json.loads(first)["time"]
    item.message = (
        "it was registered before receipts were kept"
        if item.intact
        else "the receipt of its registration is missing"
    )
    return item


def files(blobs: BlobStore, artifact: Artifact) -> tuple[Manifest | None, lineage_pb2.VerifiedItem]:
    """Reads the manifest of an artifact; None when it is missing or damaged. Blocks."""
    item = Item(resource=artifact.resource, wanted=artifact.digest, found=artifact.digest, intact=True)
    if not artifact.digest:
        item.intact, item.message = False, "it is not registered any more, so its digest is not known"
        return None, item
    try:
        return manifest.read(blobs, artifact.digest), item
    except NotFound:
        item.intact, item.found, item.message = False, "", "the manifest is missing"
    except (FailedPrecondition, TunesmithError) as error:
        item.intact, item.found, item.message = False, _found(blobs, artifact.digest), error.message
    return None, item


def _found(blobs: BlobStore, digest: str) -> str:
    try:
        return hash_of(blobs, digest)
    except TunesmithError:
        return ""


def hash_of(blobs: BlobStore, digest: str) -> str:
    """SHA-256 of what is stored under a digest. Blocks."""
    hasher = hashlib.sha256()
    with blobs.read(digest) as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def check_file(blobs: BlobStore, artifact: Artifact, file: manifest.ManifestFile) -> lineage_pb2.VerifiedItem:
    """Hashes one file again. Blocks."""
    item = Item(resource=artifact.resource, path=file.path, wanted=file.sha256)
    try:
        item.found = hash_of(blobs, file.sha256)
    except NotFound:
        item.message = "the file is missing"
        return item
    item.intact = item.found == file.sha256
    item.message = "" if item.intact else "the file was changed"
    return item
