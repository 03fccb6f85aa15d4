"""Statistics of versions: computed in the background, once, and kept; and their rpc."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import datasets_pb2, events_pb2, statistics_pb2_grpc
from tunesmith.api.registry.v1 import statistics_pb2 as pb
from tunesmith_kit import names, subjects
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_registry import store
from tunesmith_registry.calls import caller_of
from tunesmith_registry.change import Caller, say
from tunesmith_registry.data import content, counting, duplicates, prompts
from tunesmith_registry.data.preview import DEFAULT_MAX_LENGTH
from tunesmith_registry.data.rendering import Renderers, RenderingMissing, View
from tunesmith_registry.data.tables import STATISTICS

Context = Any
log = logging.getLogger(__name__)
# Rows rendered by one question; a chunk of counting is several.
_RENDERED = 512


@dataclass
class _Task:
    """A computation under way."""

    work: "asyncio.Task[None] | None" = None
    progress: float = 0.0
    cancelled: bool = False


@dataclass(frozen=True)
class _Wish:
    """What is to be computed, by name and by content."""

    project: str
    version: datasets_pb2.DatasetVersion
    uid: str
    base_model: str
    template: str
    view: View | None
    others: Sequence[datasets_pb2.DatasetVersion] = field(default_factory=tuple)

    @property
    def key(self) -> str:
        """Digest of everything the result depends on."""
        view = [self.view.base_digest, self.view.template_digest, self.view.max_length] if self.view else []
        body = [self.version.name, self.version.digest, view, [other.digest for other in self.others]]
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()


class StatisticsService(statistics_pb2_grpc.StatisticsServiceServicer):
    """StatisticsService of the contract, and the computing behind it, one version at a time."""

    def __init__(self, db: Database, blobs: BlobStore, clock: Clock, renderers: Renderers) -> None:
        self._db, self._blobs, self._clock, self._renderers = db, blobs, clock, renderers
        self._tasks: dict[str, _Task] = {}
        self._turn = asyncio.Semaphore(1)

    async def GetDatasetStatistics(
        self, request: pb.GetDatasetStatisticsRequest, context: Context
    ) -> pb.GetDatasetStatisticsResponse:
        """Returns statistics, or begins to compute them."""
        project, dataset_id, number = names.parse("projects/*/datasets/*/versions/*", request.name)
        wish = await self._db.read(lambda s: _wish(s, project, dataset_id, number, request))
        key = wish.key
        task = self._tasks.get(key)
        if task is not None:
            return pb.GetDatasetStatisticsResponse(
                state=pb.STATISTICS_STATE_COMPUTING, progress=min(task.progress, 0.99)
            )
        row = await self._db.read(lambda s: _kept(s, project, key))
        if row is not None and not row.error:
            found = pb.DatasetStatistics.FromString(row.body)
            return pb.GetDatasetStatisticsResponse(
                state=pb.STATISTICS_STATE_READY, progress=1, statistics=found
            )
        if row is not None:  # said once; asking again tries again
            await self._db.write(lambda s: _forget(s, project, key))
            return pb.GetDatasetStatisticsResponse(state=pb.STATISTICS_STATE_FAILED, error=row.error)
        task = self._tasks[key] = _Task()
        task.work = asyncio.create_task(self._run(wish, task, caller_of(self._clock)))
        return pb.GetDatasetStatisticsResponse(state=pb.STATISTICS_STATE_COMPUTING)

    async def close(self) -> None:
        """Ends what is being computed; nothing of it is kept."""
        running = list(self._tasks.values())
        for task in running:
            task.cancelled = True
        for task in running:
            if task.work is not None:
                task.work.cancel()
                await asyncio.gather(task.work, return_exceptions=True)

    async def _run(self, wish: _Wish, task: _Task, caller: Caller) -> None:
        found, error = pb.DatasetStatistics(), ""
        try:
            async with self._turn:
                found = await asyncio.to_thread(self._compute, wish, task)
        except asyncio.CancelledError:
            self._tasks.pop(wish.key, None)
            raise
        except Exception as failure:
            log.exception("statistics failed", extra={"dataset_version": wish.version.name})
            error = str(failure)[:500] or type(failure).__name__
        try:
            await self._db.write(lambda session: self._keep(session, wish, caller, found, error))
        finally:
            self._tasks.pop(wish.key, None)

    def _keep(
        self, session: Session, wish: _Wish, caller: Caller, found: pb.DatasetStatistics, error: str
    ) -> None:
        now = self._clock.now()
        found.create_time.FromDatetime(now)
        _forget(session, wish.project, wish.key)
        session.execute(
            insert(STATISTICS).values(
                project=wish.project, key=wish.key, dataset_version=wish.version.name, error=error,
                body=found.SerializeToString(), create_time=now,
            )
        )  # fmt: skip
        if not error:
            event = events_pb2.DatasetStatisticsComputed(
                dataset_version=wish.version.name,
                base_model=wish.base_model,
                prompt_template=wish.template,
                max_length=wish.view.max_length if wish.view else 0,
            )
            subject = subjects.event(wish.project, "dataset", wish.uid, "statistics_computed")
            say(session, caller, subject, "dataset_statistics_computed", event, resource=wish.version.name)

    def _compute(self, wish: _Wish, task: _Task) -> pb.DatasetStatistics:
        """Goes over the rows. Blocks."""
        began, missing = time.monotonic(), ""
        count, counter = max(1, wish.version.num_rows), counting.Counting()
        render = self._render(wish.view)
        with content.lines(self._blobs, wish.version) as source:
            for chunk in counting.chunks(source):
                if task.cancelled:
                    raise asyncio.CancelledError
                try:
                    counter.take(chunk, render)
                except RenderingMissing as error:  # the rest is told without tokens
                    missing, render = str(error), None
                task.progress = 0.9 * counter.out.num_rows / count
        out, marks = counter.finish(), counter.marks()
        counting.note_duplicates(counter, marks, self._texts(wish.version))
        for other in wish.others:
            theirs = counting.Counting()
            with content.lines(self._blobs, other) as source:
                for chunk in counting.chunks(source):
                    if theirs.out.num_rows < duplicates.MOST_ROWS:
                        theirs.take(chunk, None)
            counting.note_overlap(out, other.name, marks, theirs.marks(), self._texts(wish.version))
        if wish.view is not None and not missing:
            out.tokens.CopyFrom(counter.tokens.finish(wish.base_model, wish.template, wish.view.max_length))
        out.dataset_version, out.tokens_missing = wish.version.name, missing
        out.seconds = time.monotonic() - began
        return out

    def _render(self, view: View | None) -> counting.Rendered | None:
        if view is None:
            return None

        def render(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            for start in range(0, len(rows), _RENDERED):
                found += self._renderers.render(view, rows[start : start + _RENDERED], detail=False)
            return found

        return render

    def _texts(self, version: datasets_pb2.DatasetVersion) -> Callable[[Iterable[int]], dict[int, str]]:
        def texts(wanted: Iterable[int]) -> dict[int, str]:
            left, found = set(wanted), {}
            if not left:
                return {}
            with content.lines(self._blobs, version) as source:
                for index, line in enumerate(source):
                    if index in left:
                        found[index] = line.decode(errors="replace").strip()
                        left.remove(index)
                        if not left:
                            break
            return found

        return texts


def _wish(
    session: Session, project: str, dataset_id: str, number: str, request: pb.GetDatasetStatisticsRequest
) -> _Wish:
    row = store.dataset_row(session, project, dataset_id)
    version = store.dataset_version(session, row, store.version_number(number))
    view, template = None, ""
    if request.base_model:
        base, digest = store.base_model(session, project, request.base_model), ""
        if request.prompt_template:
            found = prompts.resolve(session, project, request.prompt_template)
            digest, template = found.digest, f"{found.prompt_id}@{found.version}"
        view = View(base.digest, digest, request.max_length or DEFAULT_MAX_LENGTH)
    others = tuple(store.resolve_dataset(session, project, other) for other in request.overlap_with)
    return _Wish(project, version, row.uid, request.base_model, template, view, others)


def _kept(session: Session, project: str, key: str) -> Any:
    query = select(STATISTICS).where(STATISTICS.c.project == project, STATISTICS.c.key == key)
    return session.execute(query).one_or_none()


def _forget(session: Session, project: str, key: str) -> None:
    session.execute(delete(STATISTICS).where(STATISTICS.c.project == project, STATISTICS.c.key == key))
