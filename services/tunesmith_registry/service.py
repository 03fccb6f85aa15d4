"""The rpcs of the registry: check, call, reply; no rules."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    datasets_pb2,
    datasets_pb2_grpc,
    models_pb2_grpc,
)
from tunesmith.api.registry.v1 import models_pb2 as pb
from tunesmith.errors import InvalidArgument
from tunesmith_kit import names
from tunesmith_kit.blobs import BlobStore, check_digest, missing
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.idempotency import once
from tunesmith_kit.manifest import ManifestFile
from tunesmith_kit.rpc import principal
from tunesmith_kit.telemetry import METRICS, current_traceparent
from tunesmith_registry import datasets, models, store, versions
from tunesmith_registry.change import Caller
from tunesmith_registry.tables import (
    BASE_MODELS,
    DATASET_VERSIONS,
    DATASETS,
    MODEL_VERSIONS,
    MODELS,
    REQUESTS,
)

Context = Any
_CHUNK = 1024 * 1024


def _caller(clock: Clock) -> Caller:
    return Caller(principal().name, clock.now(), current_traceparent())


class DatasetService(datasets_pb2_grpc.DatasetServiceServicer):
    """DatasetService of the contract."""

    def __init__(self, db: Database, blobs: BlobStore, clock: Clock) -> None:
        self._db, self._blobs, self._clock = db, blobs, clock

    async def ImportDataset(
        self, request: datasets_pb2.ImportDatasetRequest, context: Context
    ) -> datasets_pb2.ImportDatasetResponse:
        """Makes a new version of a dataset from an uploaded file."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        made = await asyncio.to_thread(datasets.read, self._blobs, request.source_digest, request.format)
        if request.validate_only:
            return datasets_pb2.ImportDatasetResponse(report=made.report)
        caller = _caller(self._clock)

        def write(session: Session) -> datasets_pb2.ImportDatasetResponse:
            def act() -> datasets_pb2.ImportDatasetResponse:
                version = store.enter_dataset(session, caller, project, request, made)
                return datasets_pb2.ImportDatasetResponse(version=version, report=made.report)

            return once(session, REQUESTS, caller.actor, request, act, datasets_pb2.ImportDatasetResponse)

        response = await self._db.write(write)
        METRICS.datasets_imported.inc()
        return response

    async def GetDataset(
        self, request: datasets_pb2.GetDatasetRequest, context: Context
    ) -> datasets_pb2.GetDatasetResponse:
        """Returns one dataset."""
        project, dataset_id = names.parse("projects/*/datasets/*", request.name)
        found = await self._db.read(lambda s: store.dataset(s, store.dataset_row(s, project, dataset_id)))
        return datasets_pb2.GetDatasetResponse(dataset=found)

    async def ListDatasets(
        self, request: datasets_pb2.ListDatasetsRequest, context: Context
    ) -> datasets_pb2.ListDatasetsResponse:
        """Lists datasets by id."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        after, size = _place(request)

        def read(session: Session) -> datasets_pb2.ListDatasetsResponse:
            rows, cursor = store.page(session, DATASETS, project, after, size)
            found = [store.dataset(session, row) for row in rows]
            return datasets_pb2.ListDatasetsResponse(
                datasets=found, next_page_token=_token(request.parent, cursor)
            )

        return await self._db.read(read)

    async def ListDatasetVersions(
        self, request: datasets_pb2.ListDatasetVersionsRequest, context: Context
    ) -> datasets_pb2.ListDatasetVersionsResponse:
        """Lists the versions of a dataset, newest first."""
        project, dataset_id = names.parse("projects/*/datasets/*", request.parent, "parent")
        before, size = _place(request)

        def read(session: Session) -> datasets_pb2.ListDatasetVersionsResponse:
            store.dataset_row(session, project, dataset_id)
            of = DATASET_VERSIONS.c
            owner = (of.project == project) & (of.dataset_id == dataset_id)
            bodies, cursor = store.version_page(session, DATASET_VERSIONS, owner, before, size)
            found = [datasets_pb2.DatasetVersion.FromString(body) for body in bodies]
            return datasets_pb2.ListDatasetVersionsResponse(
                versions=found, next_page_token=_token(request.parent, cursor)
            )

        return await self._db.read(read)


class ModelService(models_pb2_grpc.ModelServiceServicer):
    """ModelService of the contract."""

    def __init__(self, db: Database, blobs: BlobStore, clock: Clock) -> None:
        self._db, self._blobs, self._clock = db, blobs, clock

    async def ImportBaseModel(
        self, request: pb.ImportBaseModelRequest, context: Context
    ) -> pb.ImportBaseModelResponse:
        """Enters a base model whose files were uploaded."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        files = [ManifestFile(file.path, file.size_bytes, file.sha256) for file in request.files]
        facts = await asyncio.to_thread(models.check_base_model, self._blobs, files)
        caller = _caller(self._clock)

        def write(session: Session) -> pb.ImportBaseModelResponse:
            def act() -> pb.ImportBaseModelResponse:
                entered = store.enter_base_model(session, caller, project, request, facts)
                return pb.ImportBaseModelResponse(base_model=entered)

            return once(session, REQUESTS, caller.actor, request, act, pb.ImportBaseModelResponse)

        return await self._db.write(write)

    async def ListBaseModels(
        self, request: pb.ListBaseModelsRequest, context: Context
    ) -> pb.ListBaseModelsResponse:
        """Lists base models by id."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        after, size = _place(request)
        rows, cursor = await self._db.read(lambda s: store.page(s, BASE_MODELS, project, after, size))
        found = [pb.BaseModel.FromString(row.body) for row in rows]
        return pb.ListBaseModelsResponse(base_models=found, next_page_token=_token(request.parent, cursor))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Returns one model."""
        project, model_id = names.parse("projects/*/models/*", request.name)
        found = await self._db.read(lambda s: versions.model(s, versions.model_row(s, project, model_id)))
        return pb.GetModelResponse(model=found)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Lists models by id."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        after, size = _place(request)

        def read(session: Session) -> pb.ListModelsResponse:
            rows, cursor = store.page(session, MODELS, project, after, size)
            found = [versions.model(session, row) for row in rows]
            return pb.ListModelsResponse(models=found, next_page_token=_token(request.parent, cursor))

        return await self._db.read(read)

    async def GetModelVersion(
        self, request: pb.GetModelVersionRequest, context: Context
    ) -> pb.GetModelVersionResponse:
        """Returns one version of a model."""
        project, model_id, number = names.parse("projects/*/models/*/versions/*", request.name)
        version = store.version_number(number)
        found = await self._db.read(lambda s: versions.version(s, project, model_id, version))
        return pb.GetModelVersionResponse(version=found)

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Context
    ) -> pb.ListModelVersionsResponse:
        """Lists the versions of a model, newest first."""
        project, model_id = names.parse("projects/*/models/*", request.parent, "parent")
        before, size = _place(request)

        def read(session: Session) -> pb.ListModelVersionsResponse:
            owner = versions.owned_versions(session, project, model_id)
            bodies, cursor = store.version_page(session, MODEL_VERSIONS, owner, before, size)
            found = [pb.ModelVersion.FromString(body) for body in bodies]
            return pb.ListModelVersionsResponse(
                versions=found, next_page_token=_token(request.parent, cursor)
            )

        return await self._db.read(read)

    async def SetModelVersionStage(
        self, request: pb.SetModelVersionStageRequest, context: Context
    ) -> pb.SetModelVersionStageResponse:
        """Moves a version to another stage."""
        project, model_id, number = names.parse("projects/*/models/*/versions/*", request.name)
        version, caller = store.version_number(number), _caller(self._clock)

        def write(session: Session) -> pb.SetModelVersionStageResponse:
            def act() -> pb.SetModelVersionStageResponse:
                moved = versions.set_stage(
                    session, caller, project, model_id, version, request.stage, request.reason
                )
                return pb.SetModelVersionStageResponse(version=moved)

            return once(session, REQUESTS, caller.actor, request, act, pb.SetModelVersionStageResponse)

        return await self._db.write(write)

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> pb.ListCheckpointsResponse:
        """Lists the committed checkpoints of a job, newest first."""
        project, job_id = names.parse("projects/*/jobs/*", request.parent, "parent")
        before, size = _place(request)
        found, cursor = await self._db.read(
            lambda s: versions.checkpoint_page(s, project, job_id, before, size)
        )
        return pb.ListCheckpointsResponse(checkpoints=found, next_page_token=_token(request.parent, cursor))


class BlobService(blobs_pb2_grpc.BlobServiceServicer):
    """BlobService of the contract."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def UploadBlob(
        self, request_iterator: AsyncIterator[blobs_pb2.UploadBlobRequest], context: Context
    ) -> blobs_pb2.UploadBlobResponse:
        """Stores what the client sends under its SHA-256."""
        expected: list[str] = []

        async def chunks() -> AsyncIterator[bytes]:
            async for request in request_iterator:
                if request.sha256:
                    expected.append(check_digest(request.sha256, "sha256"))
                if request.chunk:
                    yield request.chunk

        blob = await self._blobs.put_stream(chunks(), lambda: expected[-1] if expected else "")
        return blobs_pb2.UploadBlobResponse(digest=blob.digest, size_bytes=blob.size_bytes)

    async def StatBlob(
        self, request: blobs_pb2.StatBlobRequest, context: Context
    ) -> blobs_pb2.StatBlobResponse:
        """Tells whether content is stored."""
        blob = await asyncio.to_thread(self._blobs.stat, request.digest)
        return blobs_pb2.StatBlobResponse(exists=blob is not None, size_bytes=blob.size_bytes if blob else 0)

    async def DownloadBlob(
        self, request: blobs_pb2.DownloadBlobRequest, context: Context
    ) -> AsyncIterator[blobs_pb2.DownloadBlobResponse]:
        """Streams the content of a digest."""
        blob = await asyncio.to_thread(self._blobs.stat, request.digest)
        if blob is None:
            raise missing(request.digest)
        if request.offset > blob.size_bytes:
            raise InvalidArgument(
                "FIELD_INVALID",
                f"the content has only {blob.size_bytes} bytes",
                field="offset",
                value=request.offset,
                remedy="begin within the content",
            )
        file = await asyncio.to_thread(self._blobs.read, request.digest)
        try:
            await asyncio.to_thread(file.seek, request.offset)
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                yield blobs_pb2.DownloadBlobResponse(chunk=chunk)
        finally:
            file.close()


class _Listing(Protocol):
    parent: str
    page_token: str
    page_size: int


def _place(request: _Listing) -> tuple[str, int]:
    """Returns the cursor behind which a page begins, and its number of rows."""
    return names.page_cursor(request.parent, request.page_token), names.page_size(request.page_size)


def _token(scope: str, cursor: str) -> str:
    return names.page_token(scope, cursor) if cursor else ""
