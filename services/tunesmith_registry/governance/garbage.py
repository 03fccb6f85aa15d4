"""What may be deleted: content that no row mentions, and versions the retention policies let go.

A content counts as referenced when its digest stands anywhere in the database, but where only the past is
told (receipts, events, answered requests), or in a manifest that is referenced. So a table of tomorrow is
safe without a word here. Pictures of runs are known to the metrics service only: agents hold them under the
id of their job, until it is deleted.

What is young is kept: it may be part of an upload, or an output not yet registered. Putting or asking for
known content makes it young again, so nothing goes while somebody relies on it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import LargeBinary, String, Table, select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import models_pb2, stages_pb2
from tunesmith.errors import NotFound
from tunesmith_kit.blobs import BlobStore
from tunesmith_registry import transitions
from tunesmith_registry.change import Caller
from tunesmith_registry.governance import describing, policies
from tunesmith_registry.governance.tables import JOB_RECORDS, PROMOTIONS
from tunesmith_registry.tables import (
    ANSWERED,
    CHECKPOINTS,
    METADATA,
    MODEL_VERSIONS,
    MODELS,
    OUTBOX,
    RECEIPTS,
    REQUESTS,
    REVISION,
    STAGE_CHANGES,
)

# What follows a digest in a message may look like one more digit (the tag of field 6 is `2`), what stands
# before it never does.
_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}")
_PAST = {
    table.name
    for table in (ANSWERED, JOB_RECORDS, OUTBOX, PROMOTIONS, RECEIPTS, REQUESTS, REVISION, STAGE_CHANGES)
}
_LARGEST_MANIFEST = 8 * 1024 * 1024
_AT_ONCE = 1000


@dataclass
class Sweep:
    """What a sweep has found so far."""

    num_blobs: int = 0
    num_referenced: int = 0
    num_young: int = 0
    num_deleted: int = 0
    bytes_deleted: int = 0
    expired_versions: list[str] = field(default_factory=list)


def mentioned(session: Session) -> set[str]:
    """Every digest that the database mentions of the present."""
    found: set[str] = set()
    for table in METADATA.sorted_tables:
        if table.name == CHECKPOINTS.name:
            found |= _kept_checkpoints(session)
        elif table.name not in _PAST:
            found |= _digests(session, table)
    return found


def _digests(session: Session, table: Table) -> set[str]:
    columns = [column for column in table.c if isinstance(column.type, String | LargeBinary)]
    found: set[str] = set()
    rows = session.execute(select(*columns).execution_options(yield_per=_AT_ONCE)) if columns else ()
    for row in rows:
        for value in row:
            data = value.encode() if isinstance(value, str) else value or b""
            found.update(match.decode() for match in _DIGEST.findall(data))
    return found


def _kept_checkpoints(session: Session) -> set[str]:
    bodies = session.execute(select(CHECKPOINTS.c.body)).scalars()
    kept = (models_pb2.Checkpoint.FromString(body) for body in bodies)
    return {checkpoint.digest for checkpoint in kept if not checkpoint.expired}


def referenced(blobs: BlobStore, roots: set[str]) -> set[str]:
    """The digests themselves and, of those that are manifests, the files. Blocks."""
    found = set(roots)
    for digest in roots:
        found.update(_files(blobs, digest))
    return found


def _files(blobs: BlobStore, digest: str) -> Iterator[str]:
    try:
        stored = blobs.stat(digest)
        if stored is None or stored.size_bytes > _LARGEST_MANIFEST:
            return
        if not blobs.read_range(digest, 0, 9).startswith(b'{"files":'):
            return
        # Not checked against its digest: a damaged manifest must not cost the files it names.
        yield from (
            match.decode() for match in _DIGEST.findall(blobs.read_range(digest, 0, _LARGEST_MANIFEST))
        )
    except NotFound:
        return


def unreferenced(
    blobs: BlobStore, keep: set[str], now: datetime, grace: timedelta, sweep: Sweep
) -> Iterator[tuple[str, int]]:
    """Yields what may go, as digest and size, and counts the rest. Blocks."""
    for blob, changed in blobs.stored():
        sweep.num_blobs += 1
        if blob.digest in keep:
            sweep.num_referenced += 1
        elif changed > now - grace:
            sweep.num_young += 1
        else:
            yield blob.digest, blob.size_bytes


def expired(session: Session, project: str, now: datetime) -> list[models_pb2.ModelVersion]:
    """Archived versions that the policies of a project let go."""
    found: list[models_pb2.ModelVersion] = []
    for model_id in session.execute(select(MODELS.c.id).where(MODELS.c.project == project)).scalars():
        policy = policies.in_force(session, project, model_id)
        if policy.keep_archived or policy.archived_days:
            found += _expired_of(session, project, model_id, policy, now)
    return found


def _expired_of(
    session: Session, project: str, model_id: str, policy: stages_pb2.ModelPolicy, now: datetime
) -> Iterator[models_pb2.ModelVersion]:
    of = MODEL_VERSIONS.c
    query = select(of.body).where(
        of.project == project, of.model_id == model_id, of.stage == transitions.ARCHIVED
    )
    archived = [
        models_pb2.ModelVersion.FromString(body)
        for body in session.execute(query.order_by(of.version.desc())).scalars()
    ]
    candidates = [v for v in archived if not describing.why_kept(session, project, model_id, v)]
    since = _archived_since(session, project, model_id)
    for place, version in enumerate(candidates):
        too_many = bool(policy.keep_archived) and place >= policy.keep_archived
        age = now - since.get(version.version, version.create_time.ToDatetime(now.tzinfo))
        if too_many or (policy.archived_days and age > timedelta(days=policy.archived_days)):
            yield version


def _archived_since(session: Session, project: str, model_id: str) -> dict[int, datetime]:
    of = STAGE_CHANGES.c
    query = select(of.version, of.body).where(
        of.project == project, of.model_id == model_id, of.to_stage == transitions.ARCHIVED
    )
    rows = session.execute(query.order_by(of.sequence))
    return {row.version: stages_pb2.StageChange.FromString(row.body).time.ToDatetime(UTC) for row in rows}


def let_go(session: Session, caller: Caller, project: str, names: list[str]) -> list[str]:
    """Deletes expired versions; each is looked at again. Returns the names of those that are gone."""
    gone = []
    for version in expired(session, project, caller.now):
        if version.name in names:
            describing.delete_version(session, caller, version, "the retention policy let it go")
            gone.append(version.name)
    return gone


def projects(session: Session) -> list[str]:
    """Projects that have models."""
    return sorted(set(session.execute(select(MODELS.c.project)).scalars()))
