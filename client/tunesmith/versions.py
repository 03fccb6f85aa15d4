"""Versions of models: registering, describing, naming; their stages, policies and approvals."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

from tunesmith import names
from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.registry.v1 import models_pb2, stages_pb2, versions_pb2
from tunesmith.blobs import OnProgress, inspect, upload
from tunesmith.connection import Connection, new_request_id
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.models import folder_files
from tunesmith.targets import resolve

_HASHING = 600.0  # seconds that a server may take to read the files of a large model
_STAGES = models_pb2.DESCRIPTOR.enum_types_by_name["ModelStage"]


def stage_number(stage: str) -> models_pb2.ModelStage.ValueType:
    """Returns the number of a stage given as a word. Raises InvalidArgument when there is none."""
    return models_pb2.ModelStage.ValueType(names.number("stage", _STAGES, stage))


class Versions(Handle[Face]):
    """The versions of the project's models, written `model@3`, `model@alias` or `model@production`."""

    _core: Connection

    @both
    async def register(
        self,
        model: str,
        folder: str | Path,
        *,
        base_model: str,
        dataset: str = "",
        description: str = "",
        labels: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> models_pb2.ModelVersion:
        """Uploads a PEFT adapter or model folder and registers it as the next version of `model`.

        Files that are stored already are not sent again, and the same files are registered once. Raises
        InvalidArgument when the folder holds anything that could run code, or is no adapter and no model.
        """
        root = Path(folder)
        files = [await inspect(path) for path in folder_files(root) if path.name != "README.md"]
        await upload(self._core, files, on_progress)
        request = versions_pb2.RegisterModelVersionRequest(
            parent=names.resource(self._core.project, "models", model),
            files=[
                common_pb2.ManifestFile(
                    path=file.path.relative_to(root).as_posix(),
                    size_bytes=file.size_bytes,
                    sha256=file.sha256,
                )
                for file in files
            ],
            base_model=names.last_part(base_model),
            dataset=dataset,
            description=description,
            labels=labels or {},
            request_id=new_request_id(),
        )
        seconds = 60 + sum(file.size_bytes for file in files) / 1e7
        return (await self._core.call(self._core.versions.RegisterModelVersion, request, seconds)).version

    @both
    async def register_checkpoint(
        self,
        model: str,
        run: str,
        step: int | None = None,
        *,
        base_model: str,
        dataset: str = "",
        description: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> models_pb2.ModelVersion:
        """Registers a checkpoint that an external run saved, its newest or that of a step, as the next
        version of `model`: a PEFT adapter or a whole model in safetensors.

        Raises:
            NotFound: the run has no such checkpoint.
            InvalidArgument: it holds anything that could run code, or is no adapter and no model.
        """
        origin = await resolve(self._core, f"job:{run}" if step is None else f"job:{run}@{step}")
        request = versions_pb2.RegisterModelVersionRequest(
            parent=names.resource(self._core.project, "models", model),
            checkpoint=origin,
            base_model=names.last_part(base_model),
            dataset=dataset,
            description=description,
            labels=labels or {},
            request_id=new_request_id(),
        )
        return (await self._core.call(self._core.versions.RegisterModelVersion, request, _HASHING)).version

    @both
    async def update(
        self,
        name: str,
        *,
        description: str | None = None,
        set_labels: Mapping[str, str] | None = None,
        remove_labels: Sequence[str] = (),
        pinned: bool | None = None,
    ) -> models_pb2.ModelVersion:
        """Changes what people say of a version, and whether it is kept whatever the retention policy says."""
        request = versions_pb2.UpdateModelVersionRequest(
            name=names.model_version(self._core.project, name),
            description=description,
            set_labels=set_labels or {},
            remove_labels=remove_labels,
            pinned=pinned,
            request_id=new_request_id(),
        )
        return (await self._core.call(self._core.versions.UpdateModelVersion, request)).version

    @both
    async def delete(self, name: str, *, reason: str = "") -> None:
        """Deletes a version. Raises FailedPrecondition while it is in Production, pinned, or named."""
        request = versions_pb2.DeleteModelVersionRequest(
            name=names.model_version(self._core.project, name), reason=reason, request_id=new_request_id()
        )
        await self._core.call(self._core.versions.DeleteModelVersion, request)

    @both
    async def set_alias(self, name: str, alias: str, *, expected: str = "") -> models_pb2.ModelVersion:
        """Lets `alias` name a version, written `model@3`; whatever it named before it names no longer.

        With `expected` (the number of the version it names, or `none`) only if nobody moved it meanwhile:
        else FailedPrecondition is raised.
        """
        model, _, version = names.model_version(self._core.project, name).partition("/versions/")
        request = versions_pb2.SetModelAliasRequest(
            name=model,
            alias=alias,
            version=version,
            request_id=new_request_id(),
            expected_version=expected,
        )
        return (await self._core.call(self._core.versions.SetModelAlias, request)).version

    @both
    async def delete_alias(self, model: str, alias: str) -> models_pb2.ModelVersion:
        """Takes an alias away and returns the version that had it."""
        request = versions_pb2.DeleteModelAliasRequest(
            name=names.resource(self._core.project, "models", model), alias=alias, request_id=new_request_id()
        )
        return (await self._core.call(self._core.versions.DeleteModelAlias, request)).version

    @both
    async def request_promotion(self, name: str, stage: str, *, reason: str = "") -> stages_pb2.Promotion:
        """Asks for a version to be moved to a stage; another person approves or rejects it."""
        request = stages_pb2.RequestPromotionRequest(
            name=names.model_version(self._core.project, name),
            stage=stage_number(stage),
            reason=reason,
            request_id=new_request_id(),
        )
        return (await self._core.call(self._core.stages.RequestPromotion, request)).promotion

    @both
    async def approve(self, promotion: str, *, reason: str = "") -> stages_pb2.ApprovePromotionResponse:
        """Approves a request, given by its resource name: the version is moved."""
        request = stages_pb2.ApprovePromotionRequest(
            name=promotion, reason=reason, request_id=new_request_id()
        )
        return await self._core.call(self._core.stages.ApprovePromotion, request)

    @both
    async def reject(self, promotion: str, *, reason: str = "") -> stages_pb2.Promotion:
        """Rejects a request, given by its resource name: the version stays."""
        request = stages_pb2.RejectPromotionRequest(
            name=promotion, reason=reason, request_id=new_request_id()
        )
        return (await self._core.call(self._core.stages.RejectPromotion, request)).promotion

    @stream
    async def promotions(
        self, model: str, *, only_open: bool = False
    ) -> AsyncGenerator[stages_pb2.Promotion, None]:
        """Yields the requests of a model, newest first."""
        parent = names.resource(self._core.project, "models", model)
        request = stages_pb2.ListPromotionsRequest(parent=parent, only_open=only_open, page_size=200)
        async for page in self._core.pages(self._core.stages.ListPromotions, request):
            for promotion in page.promotions:
                yield promotion

    @stream
    async def stage_changes(self, model: str) -> AsyncGenerator[stages_pb2.StageChange, None]:
        """Yields the changes of stage of a model, newest first."""
        parent = names.resource(self._core.project, "models", model)
        request = stages_pb2.ListStageChangesRequest(parent=parent, page_size=200)
        async for page in self._core.pages(self._core.stages.ListStageChanges, request):
            for change in page.changes:
                yield change

    @both
    async def roll_back(self, model: str, *, reason: str = "") -> stages_pb2.RollBackModelResponse:
        """Makes the version that was in Production before the present one Production again."""
        request = stages_pb2.RollBackModelRequest(
            name=names.resource(self._core.project, "models", model),
            reason=reason,
            request_id=new_request_id(),
        )
        return await self._core.call(self._core.stages.RollBackModel, request)

    @both
    async def policy(self, model: str = "-") -> stages_pb2.ModelPolicy:
        """Returns the policy in force for a model; of the whole project for `-`."""
        request = stages_pb2.GetModelPolicyRequest(name=names.resource(self._core.project, "models", model))
        return (await self._core.call(self._core.stages.GetModelPolicy, request)).policy

    @both
    async def set_policy(self, policy: stages_pb2.ModelPolicy, model: str = "-") -> stages_pb2.ModelPolicy:
        """Replaces the policy of a model, or of the whole project for `-`."""
        request = stages_pb2.SetModelPolicyRequest(
            name=names.resource(self._core.project, "models", model),
            policy=policy,
            request_id=new_request_id(),
        )
        return (await self._core.call(self._core.stages.SetModelPolicy, request)).policy

    @both
    async def gates(self, name: str, stage: str = "production") -> builtins.list[stages_pb2.GateResult]:
        """Tells which gates a version passes on its way to a stage."""
        request = stages_pb2.CheckModelGatesRequest(
            name=names.model_version(self._core.project, name), stage=stage_number(stage)
        )
        return list((await self._core.call(self._core.stages.CheckModelGates, request)).results)
