"""The rpcs of the search: check, call, reply; no rules."""

import asyncio

from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import datasets_pb2, search_pb2, search_pb2_grpc
from tunesmith_kit import names
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.db import Database
from tunesmith_registry import store
from tunesmith_registry.governance import calls, recommending, searching
from tunesmith_registry.governance.calls import Context
from tunesmith_registry.governance.embedding import Embedder, Meaning
from tunesmith_registry.governance.index import Indexes


class SearchService(search_pb2_grpc.SearchServiceServicer):
    """SearchService of the contract."""

    def __init__(self, db: Database, blobs: BlobStore, indexes: Indexes, embedder: Embedder) -> None:
        self._db, self._blobs = db, blobs
        self._indexes, self._embedder = indexes, embedder

    async def SearchModels(
        self, request: search_pb2.SearchModelsRequest, context: Context
    ) -> search_pb2.SearchModelsResponse:
        """Finds models, base models and versions."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        scope = _scope(request)
        after, size = calls.place(request, scope)
        index, why_not = self._indexes.of(project), searching.wants_meaning(request)
        meaning = Meaning(reason=why_not) if why_not else await self._embedder.meaning(request.query)
        answer, cursor = await self._db.read(
            lambda s: searching.search(s, index, request, meaning, after, size)
        )
        answer.next_page_token = calls.token(scope, cursor)
        return answer

    async def ListSimilarModels(
        self, request: search_pb2.ListSimilarModelsRequest, context: Context
    ) -> search_pb2.ListSimilarModelsResponse:
        """Lists models like one."""
        project, _ = names.parse(calls.MODEL, request.name)
        scope = f"{request.name}/similar"
        after = names.page_cursor(scope, request.page_token)
        size, index = names.page_size(request.page_size, 10), self._indexes.of(project)
        why_not = self._embedder.missing
        answer, cursor = await self._db.read(
            lambda s: searching.similar(s, index, request.name, why_not, after, size)
        )
        answer.next_page_token = calls.token(scope, cursor)
        return answer

    async def RecommendBaseModels(
        self, request: search_pb2.RecommendBaseModelsRequest, context: Context
    ) -> search_pb2.RecommendBaseModelsResponse:
        """Says which base models suit a task and a dataset."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        index = self._indexes.of(project)

        def find(session: Session) -> tuple[datasets_pb2.DatasetVersion | None, str]:
            data = store.resolve_dataset(session, project, request.dataset) if request.dataset else None
            return data, recommending.question(session, project, request)

        data, text = await self._db.read(find)
        meaning = await self._embedder.meaning(text) if text else Meaning(reason="there are no words")
        known = await self._db.read(lambda s: recommending.gather(s, index, project, data, meaning))
        ranked = await asyncio.to_thread(recommending.rank, self._blobs, known, request)
        return search_pb2.RecommendBaseModelsResponse(
            recommendations=ranked[: request.max_results or 5], mode=known.mode, mode_reason=known.mode_reason
        )


def _scope(request: search_pb2.SearchModelsRequest) -> str:
    """Names the list a page belongs to: a token of another question does not fit."""
    plain = search_pb2.SearchModelsRequest()
    plain.CopyFrom(request)
    for field in ("page_token", "page_size", "no_facets"):
        plain.ClearField(field)
    return f"{request.parent}/search/{plain.SerializeToString(deterministic=True).hex()}"
