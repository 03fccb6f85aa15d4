"""What is known of models: cards, lineage and receipts, search."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import grpc

from tunesmith import names
from tunesmith.api.registry.v1 import cards_pb2, lineage_pb2, search_pb2
from tunesmith.connection import Connection, new_request_id
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.versions import stage_number

_KINDS = search_pb2.DESCRIPTOR.enum_types_by_name["ModelKind"]
_MODES = search_pb2.DESCRIPTOR.enum_types_by_name["SearchMode"]
_DIRECTIONS = lineage_pb2.DESCRIPTOR.enum_types_by_name["LineageDirection"]


class Cards(Handle[Face]):
    """Model cards."""

    _core: Connection

    @both
    async def get(self, name: str) -> cards_pb2.ModelCard:
        """Returns the card of a version, written `model@3`."""
        request = cards_pb2.GetModelCardRequest(name=names.model_version(self._core.project, name))
        return (await self._core.call(self._core.cards.GetModelCard, request)).card

    @both
    async def sections(self, model: str) -> cards_pb2.CardSections:
        """Returns what people wrote for the cards of a model."""
        request = cards_pb2.GetCardSectionsRequest(name=names.resource(self._core.project, "models", model))
        return (await self._core.call(self._core.cards.GetCardSections, request)).sections

    @both
    async def edit(
        self,
        model: str,
        *,
        summary: str | None = None,
        intended_use: str | None = None,
        limitations: str | None = None,
        license: str | None = None,
        tags: Sequence[str] = (),
        languages: Sequence[str] = (),
        tasks: Sequence[str] = (),
        clear: Sequence[str] = (),
        etag: str = "",
    ) -> cards_pb2.CardSections:
        """Changes sections; what is not given stays. With `etag` (of the sections read before) a change made
        meanwhile is not overwritten: raises Aborted."""
        request = cards_pb2.UpdateCardSectionsRequest(
            name=names.resource(self._core.project, "models", model),
            summary=summary,
            intended_use=intended_use,
            limitations=limitations,
            license=license,
            tags=tags,
            languages=languages,
            tasks=tasks,
            clear=clear,
            etag=etag,
            request_id=new_request_id(),
        )
        return (await self._core.call(self._core.cards.UpdateCardSections, request)).sections


class Lineage(Handle[Face]):
    """What came from what, and the proof of it."""

    _core: Connection

    @both
    async def graph(
        self, name: str, *, direction: str = "both", depth: int = 0
    ) -> lineage_pb2.GetLineageResponse:
        """Returns nodes and edges around a thing: `model@3`, or a resource name."""
        full = names.model_version(self._core.project, name)
        request = lineage_pb2.GetLineageRequest(
            parent=self._core.parent,
            name=full,
            direction=lineage_pb2.LineageDirection.ValueType(
                names.number("direction", _DIRECTIONS, direction)
            ),
            depth=depth,
        )
        return await self._core.call(self._core.lineage.GetLineage, request)

    @stream
    async def receipts(self, resource: str = "") -> AsyncGenerator[lineage_pb2.Receipt, None]:
        """Yields the receipts of the project, newest first; of `resource` and what lies below it if given."""
        request = lineage_pb2.ListReceiptsRequest(parent=self._core.parent, resource=resource, page_size=200)
        async for page in self._core.pages(self._core.lineage.ListReceipts, request):
            for receipt in page.receipts:
                yield receipt

    @both
    async def signing_key(self) -> lineage_pb2.GetSigningKeyResponse:
        """Returns the public key that receipts are signed with."""
        return await self._core.call(self._core.lineage.GetSigningKey, lineage_pb2.GetSigningKeyRequest())

    @stream
    async def verify(self, name: str) -> AsyncGenerator[lineage_pb2.VerifyModelVersionResponse, None]:
        """Yields each item of a version as it is checked, and a last message with `done` and `intact`."""
        request = lineage_pb2.VerifyModelVersionRequest(name=names.model_version(self._core.project, name))
        call = self._core.lineage.VerifyModelVersion(request, metadata=self._core.metadata)
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as failure:
            raise self._core.explain(failure) from None
        finally:
            call.cancel()


class Search(Handle[Face]):
    """Finding models."""

    _core: Connection

    @both
    async def models(
        self,
        query: str = "",
        *,
        kinds: Sequence[str] = (),
        base_models: Sequence[str] = (),
        languages: Sequence[str] = (),
        tasks: Sequence[str] = (),
        tags: Sequence[str] = (),
        stages: Sequence[str] = (),
        metrics: Sequence[str] = (),
        model: str = "",
        order_by: str = "",
        mode: str = "",
        page_size: int = 50,
        page_token: str = "",
    ) -> search_pb2.SearchModelsResponse:
        """Returns a page of models, base models and versions with words and properties, and facets.

        `kinds` are `model`, `base_model` and `version`; `metrics` are comparisons such as `eval/loss<1.5`;
        `mode` is `full_text`, `meaning` or empty for both. `mode` and `mode_reason` of the answer say how the
        words were understood.
        """
        request = search_pb2.SearchModelsRequest(
            parent=self._core.parent,
            query=query,
            kinds=[search_pb2.ModelKind.ValueType(names.number("kind", _KINDS, kind)) for kind in kinds],
            base_models=base_models,
            languages=languages,
            tasks=tasks,
            tags=tags,
            stages=[stage_number(stage) for stage in stages],
            metrics=metrics,
            model=model,
            order_by=order_by,
            mode=search_pb2.SearchMode.ValueType(names.number("mode", _MODES, mode) if mode else 0),
            page_size=page_size,
            page_token=page_token,
        )
        return await self._core.call(self._core.search.SearchModels, request)

    @both
    async def similar(self, model: str, *, most: int = 10) -> list[search_pb2.FoundModel]:
        """Returns the models most like one: by properties, words and, with an encoder, meaning."""
        request = search_pb2.ListSimilarModelsRequest(
            name=names.resource(self._core.project, "models", model), page_size=most
        )
        return list((await self._core.call(self._core.search.ListSimilarModels, request)).results)

    @both
    async def recommend(
        self, task: str = "", *, dataset: str = "", memory_bytes: int = 0, most: int = 5
    ) -> list[search_pb2.Recommendation]:
        """Returns base models that suit a task and a dataset, best first, with reasons."""
        request = search_pb2.RecommendBaseModelsRequest(
            parent=self._core.parent, task=task, dataset=dataset, memory_bytes=memory_bytes, max_results=most
        )
        return list((await self._core.call(self._core.search.RecommendBaseModels, request)).recommendations)
