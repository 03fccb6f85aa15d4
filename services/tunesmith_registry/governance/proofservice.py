"""The rpcs about lineage, proof, download and garbage: check, call, reply; no rules."""

import asyncio
import functools
from collections.abc import AsyncIterator

from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import (
    exports_pb2,
    exports_pb2_grpc,
    lineage_pb2,
    lineage_pb2_grpc,
)
from tunesmith.errors import FailedPrecondition, InvalidArgument
from tunesmith_kit import names
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_registry.governance import (
    archives,
    calls,
    chain,
    graph,
    verifying,
)
from tunesmith_registry.governance.calls import Context
from tunesmith_registry.governance.collecting import Collector
from tunesmith_registry.governance.sealing import Sealer


class LineageService(lineage_pb2_grpc.LineageServiceServicer):
    """LineageService of the contract."""

    def __init__(self, db: Database, blobs: BlobStore, sealer: Sealer) -> None:
        self._db, self._blobs, self._sealer = db, blobs, sealer

    async def GetLineage(
        self, request: lineage_pb2.GetLineageRequest, context: Context
    ) -> lineage_pb2.GetLineageResponse:
        """Returns what a thing came from and what came from it."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        return await self._db.read(
            lambda s: graph.lineage(s, project, request.name, request.direction, request.depth)
        )

    async def ListReceipts(
        self, request: lineage_pb2.ListReceiptsRequest, context: Context
    ) -> lineage_pb2.ListReceiptsResponse:
        """Lists the receipts of a project, newest first."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        scope = f"{request.parent}/receipts/{request.resource}"
        before, size = calls.place(request, scope)
        await self._sealer.seal()
        found, cursor = await self._db.read(lambda s: chain.page(s, project, before, size, request.resource))
        return lineage_pb2.ListReceiptsResponse(receipts=found, next_page_token=calls.token(scope, cursor))

    async def GetSigningKey(
        self, request: lineage_pb2.GetSigningKeyRequest, context: Context
    ) -> lineage_pb2.GetSigningKeyResponse:
        """Returns the public key that receipts are signed with."""
        key = self._sealer.key
        return lineage_pb2.GetSigningKeyResponse(public_key=key.public, key_id=key.key_id)

    async def VerifyModelVersion(
        self, request: lineage_pb2.VerifyModelVersionRequest, context: Context
    ) -> AsyncIterator[lineage_pb2.VerifyModelVersionResponse]:
        """Checks everything a version consists of and came from."""
        await self._sealer.seal()
        run = Verification(self._db, self._blobs, self._sealer.key.public)
        async for answer in run.run(request.name):
            yield answer


class Verification:
    """One run of VerifyModelVersion: what is checked, in which order, and the totals."""

    def __init__(self, db: Database, blobs: BlobStore, public_key: str) -> None:
        self._db, self._blobs, self._public = db, blobs, public_key
        self._state = lineage_pb2.VerifyModelVersionResponse()

    async def run(self, name: str) -> AsyncIterator[lineage_pb2.VerifyModelVersionResponse]:
        """Yields an answer for each item, and a last one with the result."""

        def read(
            session: Session,
        ) -> tuple[str, list[verifying.Artifact], list[lineage_pb2.VerifiedItem]]:
            version = calls.version_of(session, name)
            items = verifying.receipt_items(session, version)
            return version.name.split("/")[1], verifying.artifacts(session, version), items

        project, artifacts, items = await self._db.read(read)
        plans = []
        for artifact in artifacts:
            plan, item = await asyncio.to_thread(verifying.files, self._blobs, artifact)
            plans.append((artifact, plan))
            items.append(item)
        self._state.bytes_total = sum(plan.size_bytes for _, plan in plans if plan is not None)
        for item in items:
            yield self._said(item)
        async for item in self._chain(project):
            yield self._said(item)
        for artifact, plan in plans:
            for file in plan.files if plan is not None else ():
                item = await asyncio.to_thread(verifying.check_file, self._blobs, artifact, file)
                self._state.bytes_done += file.size_bytes
                yield self._said(item)
        self._state.done, self._state.intact = True, self._state.num_damaged == 0
        self._state.ClearField("item")
        yield self._state

    async def _chain(self, project: str) -> AsyncIterator[lineage_pb2.VerifiedItem]:
        check, after = chain.Check(self._public), 0
        while rows := await self._db.read(functools.partial(chain.walk, project=project, after=after)):
            for item in await asyncio.to_thread(check.take_all, rows):
                yield item
            after = rows[-1].sequence
        message = f"{check.num_receipts} receipts in one chain"
        yield lineage_pb2.VerifiedItem(resource="receipts", intact=True, message=message)

    def _said(self, item: lineage_pb2.VerifiedItem) -> lineage_pb2.VerifyModelVersionResponse:
        self._state.num_items += 1
        self._state.num_damaged += not item.intact
        answer = lineage_pb2.VerifyModelVersionResponse()
        answer.CopyFrom(self._state)
        answer.item.CopyFrom(item)
        return answer


class ExportService(exports_pb2_grpc.ExportServiceServicer):
    """ExportService of the contract."""

    def __init__(
        self, db: Database, blobs: BlobStore, clock: Clock, sealer: Sealer, collector: Collector
    ) -> None:
        self._db, self._blobs, self._clock = db, blobs, clock
        self._sealer, self._collector = sealer, collector

    async def DownloadModelVersion(
        self, request: exports_pb2.DownloadModelVersionRequest, context: Context
    ) -> AsyncIterator[exports_pb2.DownloadModelVersionResponse]:
        """Streams a version as a tar archive."""
        await self._sealer.seal()

        def read(session: Session) -> tuple[str, archives.Archive]:
            version = calls.version_of(session, request.name)
            name = f"{version.name.split('/')[3]}-{version.version}.tar"
            return name, archives.build(session, version, self._sealer.key)

        file_name, archive = await self._db.read(read)
        _check_place(request, archive)
        yield exports_pb2.DownloadModelVersionResponse(
            file_name=file_name, content_type="application/x-tar", total_bytes=archive.size, etag=archive.etag
        )
        parts = archive.read(self._blobs, request.offset)
        while (data := await asyncio.to_thread(next, parts, None)) is not None:
            if data:
                yield exports_pb2.DownloadModelVersionResponse(data=data)

    async def CollectGarbage(
        self, request: exports_pb2.CollectGarbageRequest, context: Context
    ) -> AsyncIterator[exports_pb2.CollectGarbageResponse]:
        """Deletes content that nothing refers to any longer. A repeated call finds what is left: it needs no
        memory of its request id."""
        names.parse("projects/*", request.parent, "parent")
        who = calls.caller(self._clock)
        async for sweep, done in self._collector.collect(who, dry_run=request.dry_run):
            yield exports_pb2.CollectGarbageResponse(
                num_blobs=sweep.num_blobs,
                num_referenced=sweep.num_referenced,
                num_young=sweep.num_young,
                num_deleted=sweep.num_deleted,
                bytes_deleted=sweep.bytes_deleted,
                expired_versions=sweep.expired_versions,
                done=done,
            )


def _check_place(request: exports_pb2.DownloadModelVersionRequest, archive: archives.Archive) -> None:
    if request.etag and request.etag != archive.etag:
        raise FailedPrecondition(
            "REVISION_STALE",
            "the archive is another by now: something was said of the version meanwhile",
            field="etag",
            value=request.etag,
            remedy="begin the download anew",
        )
    if request.offset > archive.size:
        raise InvalidArgument(
            "FIELD_INVALID",
            f"the archive has only {archive.size} bytes",
            field="offset",
            value=request.offset,
            remedy="begin within the archive",
        )
