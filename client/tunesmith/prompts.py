"""Prompt templates: make, list, try out."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from tunesmith import names
from tunesmith.api.registry.v1 import prompts_pb2
from tunesmith.connection import Connection, new_request_id
from tunesmith.faces import Face, Handle, both, stream


class Prompts(Handle[Face]):
    """The prompt templates of the project. A version is named `id` (the newest) or `id@version`."""

    _core: Connection

    @both
    async def create(
        self,
        prompt_id: str,
        *,
        system: str = "",
        prompt: str = "",
        completion: str = "",
        description: str = "",
        dataset: str = "",
    ) -> prompts_pb2.CreatePromptTemplateResponse:
        """Makes a version of a template; the same parts again return the version that has them.

        With `dataset` its columns must have every variable. Raises InvalidArgument naming what is wrong.
        """
        request = prompts_pb2.CreatePromptTemplateRequest(
            parent=self._core.parent,
            prompt_id=prompt_id,
            parts=prompts_pb2.PromptParts(system=system, prompt=prompt, completion=completion),
            description=description,
            dataset=dataset,
            request_id=new_request_id(),
        )
        return await self._core.call(self._core.prompts.CreatePromptTemplate, request)

    @both
    async def get(self, name: str) -> prompts_pb2.PromptTemplate:
        """Returns one version of a template, `id` or `id@version`."""
        prompt, _, version = name.partition("@")
        resource = names.resource(self._core.project, "prompts", prompt)
        if not version:
            newest = prompts_pb2.GetPromptTemplateRequest(name=resource)
            return (await self._core.call(self._core.prompts.GetPromptTemplate, newest)).prompt_template
        request = prompts_pb2.GetPromptTemplateVersionRequest(name=f"{resource}/versions/{version}")
        return (await self._core.call(self._core.prompts.GetPromptTemplateVersion, request)).prompt_template

    @stream
    async def list(self) -> AsyncGenerator[prompts_pb2.PromptTemplate, None]:
        """Yields the newest version of each template, by id."""
        request = prompts_pb2.ListPromptTemplatesRequest(parent=self._core.parent, page_size=200)
        async for page in self._core.pages(self._core.prompts.ListPromptTemplates, request):
            for template in page.prompt_templates:
                yield template

    @stream
    async def versions(self, name: str) -> AsyncGenerator[prompts_pb2.PromptTemplate, None]:
        """Yields the versions of a template, newest first."""
        parent = names.resource(self._core.project, "prompts", name)
        request = prompts_pb2.ListPromptTemplateVersionsRequest(parent=parent, page_size=200)
        async for page in self._core.pages(self._core.prompts.ListPromptTemplateVersions, request):
            for template in page.prompt_templates:
                yield template

    @both
    async def render(
        self,
        template: str = "",
        *,
        parts: Mapping[str, str] | None = None,
        row: Mapping[str, Any] | None = None,
        dataset: str = "",
        num_rows: int = 0,
        base_model: str = "",
    ) -> prompts_pb2.RenderPromptTemplateResponse:
        """Renders a template, or parts that are not kept yet, over a row or the first rows of a dataset."""
        request = prompts_pb2.RenderPromptTemplateRequest(
            parent=self._core.parent,
            prompt_template=template,
            parts=prompts_pb2.PromptParts(**dict(parts)) if parts else None,
            row_json=json.dumps(row) if row is not None else "",
            dataset=dataset,
            num_rows=num_rows,
            base_model=base_model,
            request_id=new_request_id(),
        )
        return await self._core.call(self._core.prompts.RenderPromptTemplate, request, seconds=240)
