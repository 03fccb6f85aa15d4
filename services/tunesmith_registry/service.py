"""The rpcs of the registry: check, call, reply; no rules."""

import asyncio
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import models_pb2 as pb
from tunesmith.api.registry.v1 import models_pb2_grpc
from tunesmith_kit import names
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.idempotency import once
from tunesmith_kit.manifest import ManifestFile
from tunesmith_registry import aliases, models, store, targets, transitions, versions
from tunesmith_registry.calls import caller_of, place, token
from tunesmith_registry.governance import calls, describing, memory, policies, promotions
from tunesmith_registry.tables import (
    BASE_MODELS,
    MODEL_VERSIONS,
    MODELS,
    REQUESTS,
)

Context = Any


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
        allowed = await self._db.read(lambda session: policies.allowed_code(session, project))
        facts = await asyncio.to_thread(models.check_base_model, self._blobs, files, allowed)
        caller = caller_of(self._clock)

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
        after, size = place(request)
        rows, cursor = await self._db.read(lambda s: store.page(s, BASE_MODELS, project, after, size))
        found = [pb.BaseModel.FromString(row.body) for row in rows]
        return pb.ListBaseModelsResponse(base_models=found, next_page_token=token(request.parent, cursor))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Returns one model."""
        project, model_id = names.parse("projects/*/models/*", request.name)
        found = await self._db.read(lambda s: _model(s, versions.model_row(s, project, model_id)))
        return pb.GetModelResponse(model=found)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Lists models by id."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        after, size = place(request)

        def read(session: Session) -> pb.ListModelsResponse:
            rows, cursor = store.page(session, MODELS, project, after, size)
            found = [_model(session, row) for row in rows]
            return pb.ListModelsResponse(models=found, next_page_token=token(request.parent, cursor))

        return await self._db.read(read)

    async def GetModelVersion(
        self, request: pb.GetModelVersionRequest, context: Context
    ) -> pb.GetModelVersionResponse:
        """Returns one version of a model."""
        project, model_id, number = names.parse("projects/*/models/*/versions/*", request.name)

        def read(session: Session) -> pb.ModelVersion:
            found = targets.version_of(session, project, model_id, number)
            aliases.named(session, project, [found])
            return found

        return pb.GetModelVersionResponse(version=await self._db.read(read))

    async def ListModelVersions(
        self, request: pb.ListModelVersionsRequest, context: Context
    ) -> pb.ListModelVersionsResponse:
        """Lists the versions of a model, newest first."""
        project, model_id = names.parse("projects/*/models/*", request.parent, "parent")
        before, size = place(request)

        def read(session: Session) -> pb.ListModelVersionsResponse:
            owner = versions.owned_versions(session, project, model_id)
            bodies, cursor = store.version_page(session, MODEL_VERSIONS, owner, before, size)
            found = [pb.ModelVersion.FromString(body) for body in bodies]
            aliases.named(session, project, found)
            return pb.ListModelVersionsResponse(versions=found, next_page_token=token(request.parent, cursor))

        return await self._db.read(read)

    async def SetModelVersionStage(
        self, request: pb.SetModelVersionStageRequest, context: Context
    ) -> pb.SetModelVersionStageResponse:
        """Moves a version to another stage."""
        project, model_id, number = names.parse("projects/*/models/*/versions/*", request.name)
        caller = caller_of(self._clock)

        def write(session: Session) -> pb.SetModelVersionStageResponse:
            def act() -> pb.SetModelVersionStageResponse:
                found = targets.version_of(session, project, model_id, number)
                transitions.expect(found.stage, request.expected_stage)
                moved = promotions.move(session, caller, found, request.stage, request.reason)
                aliases.named(session, project, [moved])
                return pb.SetModelVersionStageResponse(version=moved)

            return once(session, REQUESTS, caller.actor, request, act, pb.SetModelVersionStageResponse)

        return await self._db.write(write)

    async def GetBaseModel(
        self, request: pb.GetBaseModelRequest, context: Context
    ) -> pb.GetBaseModelResponse:
        """Returns one base model, with the memory it needs."""
        project, base_id = names.parse("projects/*/baseModels/*", request.name)
        found = await self._db.read(lambda s: store.base_model(s, project, base_id))
        needs = await asyncio.to_thread(
            memory.needs, self._blobs, found, request.batch_size, request.max_length
        )
        return pb.GetBaseModelResponse(base_model=found, memory=needs)

    async def UpdateBaseModel(
        self, request: pb.UpdateBaseModelRequest, context: Context
    ) -> pb.UpdateBaseModelResponse:
        """Changes what people say of a base model."""
        project, base_id = names.parse("projects/*/baseModels/*", request.name)
        caller = caller_of(self._clock)

        def act(session: Session) -> pb.UpdateBaseModelResponse:
            changed = describing.change_base(session, caller, project, base_id, request)
            return pb.UpdateBaseModelResponse(base_model=changed)

        return await calls.change(self._db, caller, request, pb.UpdateBaseModelResponse, act)

    async def DeleteBaseModel(
        self, request: pb.DeleteBaseModelRequest, context: Context
    ) -> pb.DeleteBaseModelResponse:
        """Deletes a base model that no version needs."""
        project, base_id = names.parse("projects/*/baseModels/*", request.name)
        caller = caller_of(self._clock)

        def act(session: Session) -> pb.DeleteBaseModelResponse:
            describing.delete_base(session, caller, project, base_id)
            return pb.DeleteBaseModelResponse()

        return await calls.change(self._db, caller, request, pb.DeleteBaseModelResponse, act)

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> pb.ListCheckpointsResponse:
        """Lists the committed checkpoints of a job, newest first."""
        project, job_id = names.parse("projects/*/jobs/*", request.parent, "parent")
        before, size = place(request)
        found, cursor = await self._db.read(
            lambda s: versions.checkpoint_page(s, project, job_id, before, size)
        )
        return pb.ListCheckpointsResponse(checkpoints=found, next_page_token=token(request.parent, cursor))


def _model(session: Session, row: Row[Any]) -> pb.Model:
    """A model with the names of its versions."""
    found = versions.model(session, row)
    found.aliases.update(aliases.of_model(session, row.project, row.id))
    shown = [found.latest, found.production] if found.HasField("production") else [found.latest]
    aliases.named(session, row.project, shown)
    return found
