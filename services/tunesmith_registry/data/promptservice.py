"""The rpcs of PromptService."""

import asyncio
from collections.abc import Mapping
from itertools import islice
from typing import Any

import orjson
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import datasets_pb2, prompts_pb2_grpc
from tunesmith.api.registry.v1 import prompts_pb2 as pb
from tunesmith.errors import FailedPrecondition, InvalidArgument
from tunesmith_kit import names
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.idempotency import once
from tunesmith_registry import store
from tunesmith_registry.calls import caller_of, place, token
from tunesmith_registry.data import content, prompts
from tunesmith_registry.data.preview import Previews
from tunesmith_registry.data.rendering import RenderingMissing, run_template
from tunesmith_registry.data.rows import MESSAGES
from tunesmith_registry.data.tables import PROMPT_VERSIONS, PROMPTS
from tunesmith_registry.tables import REQUESTS

Context = Any
_DEFAULT_ROWS = 3


class PromptService(prompts_pb2_grpc.PromptServiceServicer):
    """PromptService of the contract."""

    def __init__(self, db: Database, blobs: BlobStore, clock: Clock, previews: Previews) -> None:
        self._db, self._blobs, self._clock, self._previews = db, blobs, clock, previews

    async def CreatePromptTemplate(
        self, request: pb.CreatePromptTemplateRequest, context: Context
    ) -> pb.CreatePromptTemplateResponse:
        """Makes a new version of a template."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        version: datasets_pb2.DatasetVersion | None = None
        if request.dataset:
            version = await self._db.read(lambda s: store.resolve_dataset(s, project, request.dataset))
        variables, _ = await asyncio.to_thread(_run, request.parts, [])
        made = await asyncio.to_thread(prompts.stored, self._blobs, request.parts, variables)
        unused = prompts.check_columns(made, version) if version is not None else []
        caller = caller_of(self._clock)

        def write(session: Session) -> pb.CreatePromptTemplateResponse:
            def act() -> pb.CreatePromptTemplateResponse:
                entered = prompts.enter(
                    session, caller, project, request.prompt_id, request.description, made
                )
                return pb.CreatePromptTemplateResponse(prompt_template=entered, unused_columns=unused)

            return once(session, REQUESTS, caller.actor, request, act, pb.CreatePromptTemplateResponse)

        return await self._db.write(write)

    async def GetPromptTemplate(
        self, request: pb.GetPromptTemplateRequest, context: Context
    ) -> pb.GetPromptTemplateResponse:
        """Returns the newest version of a template."""
        project, prompt_id = names.parse("projects/*/prompts/*", request.name)
        found = await self._db.read(lambda s: prompts.resolve(s, project, prompt_id))
        return pb.GetPromptTemplateResponse(prompt_template=found)

    async def GetPromptTemplateVersion(
        self, request: pb.GetPromptTemplateVersionRequest, context: Context
    ) -> pb.GetPromptTemplateVersionResponse:
        """Returns one version of a template."""
        project, prompt_id, number = names.parse("projects/*/prompts/*/versions/*", request.name)
        version = store.version_number(number)

        def read(session: Session) -> pb.PromptTemplate:
            return prompts.version_of(session, prompts.row_of(session, project, prompt_id), version)

        return pb.GetPromptTemplateVersionResponse(prompt_template=await self._db.read(read))

    async def ListPromptTemplates(
        self, request: pb.ListPromptTemplatesRequest, context: Context
    ) -> pb.ListPromptTemplatesResponse:
        """Lists the newest version of each template, by id."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        after, size = place(request)

        def read(session: Session) -> pb.ListPromptTemplatesResponse:
            rows, cursor = store.page(session, PROMPTS, project, after, size)
            found = [prompts.version_of(session, row, row.latest_version) for row in rows]
            return pb.ListPromptTemplatesResponse(
                prompt_templates=found, next_page_token=token(request.parent, cursor)
            )

        return await self._db.read(read)

    async def ListPromptTemplateVersions(
        self, request: pb.ListPromptTemplateVersionsRequest, context: Context
    ) -> pb.ListPromptTemplateVersionsResponse:
        """Lists the versions of a template, newest first."""
        project, prompt_id = names.parse("projects/*/prompts/*", request.parent, "parent")
        before, size = place(request)

        def read(session: Session) -> pb.ListPromptTemplateVersionsResponse:
            prompts.row_of(session, project, prompt_id)
            of = PROMPT_VERSIONS.c
            owner = (of.project == project) & (of.prompt_id == prompt_id)
            bodies, cursor = store.version_page(session, PROMPT_VERSIONS, owner, before, size)
            found = [pb.PromptTemplate.FromString(body) for body in bodies]
            return pb.ListPromptTemplateVersionsResponse(
                prompt_templates=found, next_page_token=token(request.parent, cursor)
            )

        return await self._db.read(read)

    async def RenderPromptTemplate(
        self, request: pb.RenderPromptTemplateRequest, context: Context
    ) -> pb.RenderPromptTemplateResponse:
        """Renders a template over rows; keeps nothing."""
        (project,) = names.parse("projects/*", request.parent, "parent")

        def read(session: Session) -> tuple[pb.PromptParts, datasets_pb2.DatasetVersion | None]:
            parts = request.parts
            if request.prompt_template:
                parts = prompts.resolve(session, project, request.prompt_template).parts
            return parts, store.resolve_dataset(
                session, project, request.dataset
            ) if request.dataset else None

        parts, version = await self._db.read(read)
        view = None
        if request.base_model:
            made = await asyncio.to_thread(prompts.stored, self._blobs, parts, [])
            view = await self._previews.view(project, request.base_model, "", 0, made.digest)
        rows = await asyncio.to_thread(self._rows, request, version)
        variables, rendered = await asyncio.to_thread(_run, parts, [content.columns(row) for row in rows])
        columns = list(content.columns(rows[0])) if rows else []
        missing, unused = prompts.compare(variables, columns, MESSAGES if "messages" in columns else "")
        response = pb.RenderPromptTemplateResponse(
            variables=variables, missing=missing if rows else [], unused_columns=unused
        )
        for number, item in enumerate(rendered, 1):
            response.rendered.append(
                pb.RenderedPrompt(
                    row=number if version is not None and not request.row_json else 0,
                    messages=[pb.PromptMessage(**turn) for turn in item.get("messages", ())],
                    error=item.get("error", ""),
                )
            )
        if view is not None:
            seen = await asyncio.to_thread(self._previews.render, view, list(enumerate(rows, 1)))
            for one, preview in zip(response.rendered, seen, strict=True):
                one.preview.CopyFrom(preview)
        return response

    def _rows(
        self, request: pb.RenderPromptTemplateRequest, version: datasets_pb2.DatasetVersion | None
    ) -> list[dict[str, Any]]:
        if request.row_json:
            return [_row(request.row_json)]
        if version is None:
            return []
        return list(islice(content.rows(self._blobs, version), request.num_rows or _DEFAULT_ROWS))


def _row(text: str) -> dict[str, Any]:
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        row = str(error)
    if isinstance(row, dict):
        return row
    raise InvalidArgument(
        "FIELD_INVALID", "the row is no JSON object", field="row_json", value=text[:200],
        remedy='write an object such as {"question": "…"}',
    )  # fmt: skip


def _run(
    parts: pb.PromptParts, rows: list[Mapping[str, Any]] | list[dict[str, Any]]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Runs a template; what is wrong with it is the caller's to mend."""
    if not (parts.system or parts.prompt or parts.completion):
        raise InvalidArgument(
            "TEMPLATE_INVALID", "the prompt template has no part", field="parts",
            remedy="give at least one of system, prompt and completion",
        )  # fmt: skip
    try:
        return run_template(parts, rows)
    except ValueError as error:
        raise InvalidArgument(
            "TEMPLATE_INVALID", f"the prompt template cannot be used: {error}", field="parts",
            remedy="correct it; it is Jinja over a row's columns, without includes and attributes",
        ) from error  # fmt: skip
    except RenderingMissing as error:
        raise FailedPrecondition(
            "RENDERING_MISSING", str(error), field="parts", remedy="install tunesmith[server] in full"
        ) from error
