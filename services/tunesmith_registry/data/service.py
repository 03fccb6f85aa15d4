"""The rpcs of DatasetService and DerivationService."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import datasets_pb2 as pb
from tunesmith.api.registry.v1 import datasets_pb2_grpc, derivations_pb2, derivations_pb2_grpc
from tunesmith_kit import names
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.idempotency import once
from tunesmith_kit.telemetry import METRICS
from tunesmith_registry import store
from tunesmith_registry.calls import caller_of, place, token
from tunesmith_registry.change import Caller
from tunesmith_registry.data import derivations, export, importing, sources
from tunesmith_registry.data.importing import Import, Limits, Progress
from tunesmith_registry.data.preview import Previews
from tunesmith_registry.data.sources import Doors
from tunesmith_registry.tables import DATASET_VERSIONS, DATASETS, REQUESTS

Context = Any
_TOLD_EVERY_SECONDS = 0.25
_DEFAULT_ROWS = 20


class DatasetService(datasets_pb2_grpc.DatasetServiceServicer):
    """DatasetService of the contract."""

    def __init__(
        self, db: Database, blobs: BlobStore, clock: Clock, doors: Doors, limits: Limits, previews: Previews
    ) -> None:
        self._db, self._blobs, self._clock = db, blobs, clock
        self._doors, self._limits, self._previews = doors, limits, previews

    async def ImportDataset(
        self, request: pb.ImportDatasetRequest, context: Context
    ) -> pb.ImportDatasetResponse:
        """Makes a new version of a dataset."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        importing.check_source(request)
        progress = Progress()
        made = await self._stored(request, progress)
        made.findings.raise_if_bad(made.report.num_rows)  # of a check; an import has raised them itself
        return await self._entered(project, request, made, caller_of(self._clock))

    async def RunImport(
        self, request: pb.RunImportRequest, context: Context
    ) -> AsyncIterator[pb.RunImportResponse]:
        """Imports and tells how far it has come."""
        asked = request.import_request
        (project,) = names.parse("projects/*", asked.parent, "parent")
        importing.check_source(asked)
        asked.request_id = asked.request_id or request.request_id
        progress, caller = Progress(), caller_of(self._clock)
        work = asyncio.create_task(self._stored(asked, progress))
        try:
            while not work.done():
                await asyncio.wait([work], timeout=_TOLD_EVERY_SECONDS)
                yield pb.RunImportResponse(progress=progress.proto())
            result = await self._entered(project, asked, work.result(), caller)
            yield pb.RunImportResponse(progress=progress.proto(), result=result)
        finally:
            progress.cancelled = True
            with suppress(BaseException):  # the caller has its answer, or is gone
                await asyncio.shield(work)

    async def _stored(self, request: pb.ImportDatasetRequest, progress: Progress) -> Import:
        def work() -> Import:
            def tell(done: int, total: int) -> None:
                progress.num_bytes, progress.total_bytes = done, total
                if progress.cancelled:
                    raise asyncio.CancelledError

            with sources.opened(self._blobs, self._doors, request, tell) as source:
                request.source = request.source or source.label[:1000]
                return importing.read(self._blobs, source, request, progress, self._limits)

        try:
            return await asyncio.to_thread(work)
        except asyncio.CancelledError:
            progress.cancelled = True
            raise

    async def _entered(
        self, project: str, request: pb.ImportDatasetRequest, made: Import, caller: Caller
    ) -> pb.ImportDatasetResponse:
        if request.validate_only:
            return pb.ImportDatasetResponse(report=made.report)
        body = pb.DatasetVersion(
            digest=made.digest,
            manifest=made.manifest.proto(),
            num_rows=made.num_rows,
            size_bytes=made.size_bytes,
            row_format=made.row_format,
            source=request.source,
            report=made.report,
            columns=made.columns,
            source_format=made.source_format,  # type: ignore[arg-type]
            mapping=request.mapping,
        )

        def write(session: Session) -> pb.ImportDatasetResponse:
            def act() -> pb.ImportDatasetResponse:
                version = store.enter_dataset(
                    session, caller, project, request.dataset_id, request.description, body
                )
                return pb.ImportDatasetResponse(version=version, report=made.report)

            return once(session, REQUESTS, caller.actor, request, act, pb.ImportDatasetResponse)

        response = await self._db.write(write)
        METRICS.datasets_imported.inc()
        return response

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> pb.GetDatasetResponse:
        """Returns one dataset."""
        project, dataset_id = names.parse("projects/*/datasets/*", request.name)
        found = await self._db.read(lambda s: store.dataset(s, store.dataset_row(s, project, dataset_id)))
        return pb.GetDatasetResponse(dataset=found)

    async def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: Context
    ) -> pb.ListDatasetsResponse:
        """Lists datasets by id."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        after, size = place(request)

        def read(session: Session) -> pb.ListDatasetsResponse:
            rows, cursor = store.page(session, DATASETS, project, after, size)
            found = [store.dataset(session, row) for row in rows]
            return pb.ListDatasetsResponse(datasets=found, next_page_token=token(request.parent, cursor))

        return await self._db.read(read)

    async def ListDatasetVersions(
        self, request: pb.ListDatasetVersionsRequest, context: Context
    ) -> pb.ListDatasetVersionsResponse:
        """Lists the versions of a dataset, newest first."""
        project, dataset_id = names.parse("projects/*/datasets/*", request.parent, "parent")
        before, size = place(request)

        def read(session: Session) -> pb.ListDatasetVersionsResponse:
            store.dataset_row(session, project, dataset_id)
            of = DATASET_VERSIONS.c
            owner = (of.project == project) & (of.dataset_id == dataset_id)
            bodies, cursor = store.version_page(session, DATASET_VERSIONS, owner, before, size)
            found = [pb.DatasetVersion.FromString(body) for body in bodies]
            return pb.ListDatasetVersionsResponse(
                versions=found, next_page_token=token(request.parent, cursor)
            )

        return await self._db.read(read)

    async def GetDatasetVersion(
        self, request: pb.GetDatasetVersionRequest, context: Context
    ) -> pb.GetDatasetVersionResponse:
        """Returns one version of a dataset."""
        _, version = await self._version(request.name, "name")
        return pb.GetDatasetVersionResponse(version=version)

    async def ListDatasetRows(
        self, request: pb.ListDatasetRowsRequest, context: Context
    ) -> pb.ListDatasetRowsResponse:
        """Shows rows of a version, raw and rendered."""
        project, version = await self._version(request.parent, "parent")
        scope = f"{request.parent}?{request.contains}"
        offset, row = 0, 1
        if cursor := names.page_cursor(scope, request.page_token):
            offset, row = store.cursor_numbers(cursor, 2)
        size = names.page_size(request.page_size, _DEFAULT_ROWS, 200)
        lines, behind = await asyncio.to_thread(
            self._previews.page, version, offset, row, size, request.contains
        )
        view = None
        if request.base_model:
            view = await self._previews.view(
                project, request.base_model, request.prompt_template, request.max_length
            )
        rows, why = await asyncio.to_thread(self._previews.rows, view, lines)
        next_token = token(scope, f"{behind[0]}.{behind[1]}") if behind else ""
        return pb.ListDatasetRowsResponse(rows=rows, next_page_token=next_token, not_rendered=why)

    async def ExportDataset(
        self, request: pb.ExportDatasetRequest, context: Context
    ) -> AsyncIterator[pb.ExportDatasetResponse]:
        """Writes a version as a file."""
        _, version = await self._version(request.name, "name")
        source = export.pieces(self._blobs, version, request.format)
        try:
            while (piece := await asyncio.to_thread(next, source, None)) is not None:
                yield piece
        finally:
            source.close()  # type: ignore[attr-defined]

    async def _version(self, name: str, field: str) -> tuple[str, pb.DatasetVersion]:
        project, dataset_id, number = names.parse("projects/*/datasets/*/versions/*", name, field)

        def read(session: Session) -> pb.DatasetVersion:
            row = store.dataset_row(session, project, dataset_id)
            return store.dataset_version(session, row, store.version_number(number))

        return project, await self._db.read(read)


class DerivationService(derivations_pb2_grpc.DerivationServiceServicer):
    """DerivationService of the contract."""

    def __init__(self, db: Database, blobs: BlobStore, clock: Clock) -> None:
        self._db, self._blobs, self._clock = db, blobs, clock

    async def DeriveDataset(
        self, request: derivations_pb2.DeriveDatasetRequest, context: Context
    ) -> derivations_pb2.DeriveDatasetResponse:
        """Makes new versions of other versions."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        wanted = derivations.inputs(request)
        versions = await self._db.read(lambda s: [store.resolve_dataset(s, project, each) for each in wanted])
        made = await asyncio.to_thread(derivations.derive, self._blobs, request, versions)
        caller = caller_of(self._clock)

        def write(session: Session) -> derivations_pb2.DeriveDatasetResponse:
            def act() -> derivations_pb2.DeriveDatasetResponse:
                entered = [
                    store.enter_dataset(
                        session, caller, project, each.dataset_id, request.description, each.version
                    )
                    for each in made
                ]
                return derivations_pb2.DeriveDatasetResponse(versions=entered)

            answer = derivations_pb2.DeriveDatasetResponse
            return once(session, REQUESTS, caller.actor, request, act, answer)

        return await self._db.write(write)
