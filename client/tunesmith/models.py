"""Base models, models and their versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack
from pathlib import Path

from tunesmith import names, origins
from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.registry.v1 import models_pb2
from tunesmith.blobs import OnProgress, inspect, unreadable, upload
from tunesmith.connection import Connection, new_request_id
from tunesmith.errors import InvalidArgument
from tunesmith.faces import Face, Handle, both, stream

_STAGES = models_pb2.DESCRIPTOR.enum_types_by_name["ModelStage"]


class Models(Handle[Face]):
    """The base models and models of the project. A version is written `model@3`."""

    _core: Connection

    @both
    async def import_base(
        self,
        folder: str | Path,
        base_model_id: str = "",
        *,
        source: str = "",
        license: str = "",
        on_progress: OnProgress | None = None,
    ) -> models_pb2.BaseModel:
        """Uploads a model and enters it as a base model: a Hugging Face folder, a file `NAME.gguf` (converted
        here, which needs the extra `trainer`), or `hf:ORG/NAME@REVISION` (fetched here from a hub, which
        needs the library huggingface_hub).

        Files that are stored already are not sent again. Raises InvalidArgument when the model holds
        anything that could run code, or is none. `on_progress` hears (bytes done, bytes in all).
        """
        with ExitStack() as closing:
            origin = await asyncio.to_thread(closing.enter_context, origins.opened(folder, on_progress))
            request = models_pb2.ImportBaseModelRequest(
                parent=self._core.parent,
                base_model_id=base_model_id or origin.model_id,
                source=source or origin.source,
                license=license or origin.license,
                facts=origin.facts,
                request_id=new_request_id(),
            )
            return await self._enter(origin.folder, request, on_progress)

    async def _enter(
        self, root: Path, request: models_pb2.ImportBaseModelRequest, on_progress: OnProgress | None
    ) -> models_pb2.BaseModel:
        paths = await asyncio.to_thread(folder_files, root)
        files = [await inspect(path) for path in paths]
        await upload(self._core, files, on_progress)
        request.files.extend(
            common_pb2.ManifestFile(
                path=file.path.relative_to(root).as_posix(),
                size_bytes=file.size_bytes,
                sha256=file.sha256,
            )
            for file in files
        )
        # The server reads every file again for its hash and shapes.
        seconds = 60 + sum(file.size_bytes for file in files) / 1e7
        return (await self._core.call(self._core.models.ImportBaseModel, request, seconds=seconds)).base_model

    @stream
    async def bases(self) -> AsyncGenerator[models_pb2.BaseModel, None]:
        """Yields base models by id."""
        request = models_pb2.ListBaseModelsRequest(parent=self._core.parent, page_size=200)
        async for page in self._core.pages(self._core.models.ListBaseModels, request):
            for base in page.base_models:
                yield base

    @both
    async def base(
        self, name: str, *, batch_size: int = 0, max_length: int = 0
    ) -> models_pb2.GetBaseModelResponse:
        """Returns one base model, with the memory it needs at a batch size and row length."""
        request = models_pb2.GetBaseModelRequest(
            name=names.resource(self._core.project, "baseModels", name),
            batch_size=batch_size,
            max_length=max_length,
        )
        return await self._core.call(self._core.models.GetBaseModel, request)

    @both
    async def update_base(
        self,
        name: str,
        *,
        license: str | None = None,
        tags: Sequence[str] = (),
        languages: Sequence[str] = (),
        tasks: Sequence[str] = (),
    ) -> models_pb2.BaseModel:
        """Changes what people say of a base model; its files never change."""
        request = models_pb2.UpdateBaseModelRequest(
            name=names.resource(self._core.project, "baseModels", name),
            license=license,
            tags=tags,
            languages=languages,
            tasks=tasks,
            request_id=new_request_id(),
        )
        return (await self._core.call(self._core.models.UpdateBaseModel, request)).base_model

    @both
    async def delete_base(self, name: str) -> None:
        """Deletes a base model. Raises FailedPrecondition while a version was made from it."""
        request = models_pb2.DeleteBaseModelRequest(
            name=names.resource(self._core.project, "baseModels", name), request_id=new_request_id()
        )
        await self._core.call(self._core.models.DeleteBaseModel, request)

    @both
    async def get(self, name: str) -> models_pb2.Model:
        """Returns one model by its id or resource name."""
        request = models_pb2.GetModelRequest(name=names.resource(self._core.project, "models", name))
        return (await self._core.call(self._core.models.GetModel, request)).model

    @stream
    async def list(self) -> AsyncGenerator[models_pb2.Model, None]:
        """Yields models by id."""
        request = models_pb2.ListModelsRequest(parent=self._core.parent, page_size=200)
        async for page in self._core.pages(self._core.models.ListModels, request):
            for model in page.models:
                yield model

    @stream
    async def versions(self, name: str) -> AsyncGenerator[models_pb2.ModelVersion, None]:
        """Yields the versions of a model, newest first."""
        parent = names.resource(self._core.project, "models", name)
        request = models_pb2.ListModelVersionsRequest(parent=parent, page_size=200)
        async for page in self._core.pages(self._core.models.ListModelVersions, request):
            for version in page.versions:
                yield version

    @both
    async def version(self, name: str) -> models_pb2.ModelVersion:
        """Returns one version, written `model@3` or as a resource name."""
        request = models_pb2.GetModelVersionRequest(name=names.model_version(self._core.project, name))
        return (await self._core.call(self._core.models.GetModelVersion, request)).version

    @both
    async def set_stage(self, name: str, stage: str, *, reason: str = "") -> models_pb2.ModelVersion:
        """Moves a version to stage `none`, `staging`, `production` or `archived`.

        The version that was in production before becomes archived.
        """
        number = names.value_of(_STAGES, stage)
        if not number:
            raise InvalidArgument(
                "FIELD_INVALID",
                f"{stage} is no stage of a model version",
                field="stage",
                value=stage,
                remedy="use one of " + ", ".join(names.choices(_STAGES)),
            )
        request = models_pb2.SetModelVersionStageRequest(
            name=names.model_version(self._core.project, name),
            stage=models_pb2.ModelStage.ValueType(number),
            reason=reason,
            request_id=new_request_id(),
        )
        return (await self._core.call(self._core.models.SetModelVersionStage, request)).version


def folder_files(root: Path) -> list[Path]:
    """Returns the files of a model folder, sorted.

    Left out is what begins with a dot (.git, .cache), and a manifest: the registry makes its own.
    """
    if not root.is_dir():
        raise InvalidArgument(
            "FILE_UNREADABLE",
            f"{root} is not a folder",
            field="folder",
            value=root,
            remedy="give a Hugging Face model folder with config.json, model.safetensors and the tokenizer",
        )
    try:
        found = [path for path in sorted(root.rglob("*")) if path.is_file()]
    except OSError as error:
        raise unreadable(root, error) from None
    named = [(path, path.relative_to(root)) for path in found]
    hidden = {path for path, name in named if any(part.startswith(".") for part in name.parts)}
    return [path for path, name in named if path not in hidden and str(name) != "manifest.json"]
