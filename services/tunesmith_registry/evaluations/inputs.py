"""The targets of an evaluation or export, resolved and pinned before any node is taken."""

import asyncio
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import evaluation_pb2, spec_pb2
from tunesmith.api.registry.v1 import events_pb2
from tunesmith.errors import FailedPrecondition, InvalidArgument, NotFound, TunesmithError
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.db import Database
from tunesmith_registry import store, targets
from tunesmith_registry.tables import DATASET_VERSIONS
from tunesmith_registry.targets import Target

_REFUSED = (NotFound, FailedPrecondition, InvalidArgument)


@dataclass
class Pinned:
    """What was found; `errors` with the field each is about."""

    targets: list[evaluation_pb2.PinnedTarget] = field(default_factory=list)
    base_model: str = ""
    base_digest: str = ""
    dataset_version: str = ""
    errors: list[tuple[str, TunesmithError]] = field(default_factory=list)

    def validated(self) -> events_pb2.JobInputsValidated:
        """The same as the registry answers it."""
        return events_pb2.JobInputsValidated(
            base_model=self.base_model,
            base_model_digest=self.base_digest,
            dataset_version=self.dataset_version,
            targets=self.targets,
        )


async def pin(db: Database, blobs: BlobStore, project: str, spec: spec_pb2.JobSpec) -> Pinned | None:
    """Resolves what a job works on, and hashes it again; None for a job that trains."""
    if spec.HasField("evaluation"):
        named = {f"spec.evaluation.targets[{at}]": name for at, name in enumerate(spec.evaluation.targets)}
    elif spec.HasField("export"):
        named = {"spec.export.target": spec.export.target}
    else:
        return None
    pinned = Pinned()
    for where, name in named.items():
        try:
            target = await targets.find(db, blobs, project, name)
            await asyncio.to_thread(_check, blobs, target)
            _agree(pinned, target, spec)
        except _REFUSED as error:
            pinned.errors.append((where, error))
            continue
        if any(known.name == target.name for known in pinned.targets):
            pinned.errors.append((where, _twice(target)))
        pinned.targets.append(evaluation_pb2.PinnedTarget(name=target.name, digest=target.digest))
        if spec.HasField("export"):
            digest = target.properties.get("dataset_digest", "")
            pinned.dataset_version = await db.read(lambda s, digest=digest: _dataset_of(s, project, digest))  # type: ignore[misc]
    if pinned.base_model and not pinned.errors:
        base_id = pinned.base_model.rpartition("/")[2]
        present = (await db.read(lambda session: store.base_model(session, project, base_id))).digest
        if present != pinned.base_digest:
            pinned.errors.append(("spec.base_model", _foreign(base_id, pinned.base_digest, present)))
    return pinned


def _check(blobs: BlobStore, target: Target) -> None:
    """Refuses what no model can be made of, and what is damaged."""
    if target.properties.get("holds") == "evaluation":
        raise FailedPrecondition(
            "TARGET_INVALID",
            f"{target.name} holds the answers of an evaluation, not a model",
            field="targets",
            value=target.name,
            remedy="name a checkpoint of a training job",
        )
    if not target.digest:
        return
    try:
        manifest.verify(blobs, target.digest)
    except _REFUSED as error:
        raise FailedPrecondition(
            "TARGET_DAMAGED",
            f"{target.name} cannot be used: {error.message} ({error.field} {error.value})",
            field="targets",
            value=target.digest,
            remedy="name another version or checkpoint, or restore the file in the blob store",
        ) from error


def _agree(pinned: Pinned, target: Target, spec: spec_pb2.JobSpec) -> None:
    """Takes the target's base model as the job's; all targets must have the same."""
    base_id = target.base_model.rpartition("/")[2]
    if not pinned.base_digest:
        pinned.base_model, pinned.base_digest = target.base_model, target.base_digest
    elif pinned.base_digest != target.base_digest:
        raise FailedPrecondition(
            "TARGETS_DIFFER",
            f"{target.name} has the base model {base_id}, the first target another one",
            field="targets",
            value=target.name,
            remedy="evaluate them in two jobs on the same dataset version, then compare the evaluations",
        )
    if spec.base_model and spec.base_model != base_id:
        raise FailedPrecondition(
            "TARGETS_DIFFER",
            f"{target.name} has the base model {base_id}, the job names {spec.base_model}",
            field="targets",
            value=target.name,
            remedy="leave base_model out: it is that of the targets",
        )


def _twice(target: Target) -> InvalidArgument:
    return InvalidArgument(
        "TARGET_TWICE",
        f"{target.name} is named twice",
        field="targets",
        value=target.name,
        remedy="an alias, a stage and a number may mean the same version: name it once",
    )


def _foreign(base_id: str, wanted: str, present: str) -> FailedPrecondition:
    return FailedPrecondition(
        "CHECKPOINT_FOREIGN",
        f"the target was trained on base model {wanted[:12]}, and {base_id} is {present[:12]} now",
        field="base_model",
        value=base_id,
        remedy="import the base model it was trained on under this name again",
    )


def _dataset_of(session: Session, project: str, digest: str) -> str:
    """The newest dataset version of a digest; empty when it is not known here."""
    of = DATASET_VERSIONS.c
    query = select(of.dataset_id, of.version).where(of.project == project, of.digest == digest)
    row = session.execute(query.order_by(of.version.desc()).limit(1)).one_or_none()
    return f"projects/{project}/datasets/{row.dataset_id}/versions/{row.version}" if row is not None else ""
