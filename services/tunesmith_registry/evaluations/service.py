"""The rpcs of evaluations: check, call, reply; no rules."""

import asyncio
import hashlib
from typing import Any

import numpy as np

from tunesmith.api.registry.v1 import evaluations_pb2 as pb
from tunesmith.api.registry.v1 import evaluations_pb2_grpc
from tunesmith.errors import FailedPrecondition, InvalidArgument
from tunesmith_kit import names
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.db import Database
from tunesmith_registry.evaluations import statistics, store
from tunesmith_registry.evaluations.browsing import Shelf
from tunesmith_registry.evaluations.samples import Judgements, Metric
from tunesmith_registry.evaluations.statistics import Side
from tunesmith_registry.store import cursor_numbers

Context = Any
_FORM = "projects/*/evaluations/*"
_DATASETS = ("projects/*/datasets/*", "projects/*/datasets/*/versions/*")


class EvaluationService(evaluations_pb2_grpc.EvaluationServiceServicer):
    """Evaluations and their samples."""

    def __init__(self, db: Database, blobs: BlobStore) -> None:
        self._db, self._shelf = db, Shelf(blobs)

    async def GetEvaluation(
        self, request: pb.GetEvaluationRequest, context: Context
    ) -> pb.GetEvaluationResponse:
        """Returns one evaluation."""
        return pb.GetEvaluationResponse(evaluation=await self._find(request.name, "name"))

    async def ListEvaluations(
        self, request: pb.ListEvaluationsRequest, context: Context
    ) -> pb.ListEvaluationsResponse:
        """Lists evaluations, newest first."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        if request.dataset:
            names.parse(_DATASETS["/versions/" in request.dataset], request.dataset, "dataset")
        wanted = store.Wanted(request.target, request.dataset)
        size, scope = names.page_size(request.page_size), f"evaluations of {request.parent}"
        before = names.page_cursor(scope, request.page_token)
        found, cursor = await self._db.read(lambda s: store.page(s, project, wanted, before, size))
        token = names.page_token(scope, cursor) if cursor else ""
        return pb.ListEvaluationsResponse(evaluations=found, next_page_token=token)

    async def ListEvaluationSamples(
        self, request: pb.ListEvaluationSamplesRequest, context: Context
    ) -> pb.ListEvaluationSamplesResponse:
        """Lists samples that match, in the order asked for."""
        evaluation = await self._find(request.parent, "parent")
        scope = _scope(request)
        cursor = names.page_cursor(scope, request.page_token)
        start = cursor_numbers(cursor, 1)[0] if cursor else 0
        size = names.page_size(request.page_size)
        found, number, following = await self._shelf.page(evaluation, request, start, size)
        token = names.page_token(scope, str(following)) if following else ""
        return pb.ListEvaluationSamplesResponse(samples=found, next_page_token=token, num_samples=number)

    async def CompareEvaluations(
        self, request: pb.CompareEvaluationsRequest, context: Context
    ) -> pb.CompareEvaluationsResponse:
        """Compares targets on the rows that all of them have."""
        (project,) = names.parse("projects/*", request.parent, "parent")
        if len(request.targets) < 2:
            raise InvalidArgument(
                "FIELD_INVALID", "there is one target", field="targets", value="1", remedy="name two or more"
            )
        sides: list[tuple[Judgements, int]] = []
        names_: list[str] = []
        dataset = ""
        for at, wanted in enumerate(request.targets):
            where = f"targets[{at}].evaluation"
            if names.parse(_FORM, wanted.evaluation, where)[0] != project:
                raise InvalidArgument(
                    "NAME_INVALID", f"this belongs to another project than {project}", field=where,
                    value=wanted.evaluation, remedy=f"name an evaluation of projects/{project}",
                )  # fmt: skip
            evaluation = await self._find(wanted.evaluation, where)
            _check_side(evaluation, wanted, at, dataset)
            dataset = evaluation.dataset_digest
            sides.append(((await self._shelf.judgements(evaluation))[1], wanted.target_index))
            names_.append(evaluation.targets[wanted.target_index].name)
        return pb.CompareEvaluationsResponse(
            comparisons=await asyncio.to_thread(_compare, sides), targets=names_
        )

    async def _find(self, name: str, field: str) -> pb.Evaluation:
        project, evaluation_id = names.parse(_FORM, name, field)
        return await self._db.read(lambda session: store.find(session, project, evaluation_id))


def _check_side(evaluation: pb.Evaluation, wanted: pb.EvaluatedTarget, at: int, dataset: str) -> None:
    if wanted.target_index >= len(evaluation.targets):
        raise InvalidArgument(
            "FIELD_INVALID",
            f"{evaluation.name} has {len(evaluation.targets)} targets",
            field=f"targets[{at}].target_index",
            value=wanted.target_index,
            remedy=f"give 0 to {len(evaluation.targets) - 1}",
        )
    if dataset and evaluation.dataset_digest != dataset:
        raise FailedPrecondition(
            "EVALUATIONS_DIFFER",
            f"{evaluation.name} judged other data than the first one",
            field=f"targets[{at}].evaluation",
            value=evaluation.dataset_version,
            remedy="compare evaluations of the same dataset version",
        )


def _compare(sides: list[tuple[Judgements, int]]) -> list[pb.TargetComparison]:
    """Comparisons on the rows and metrics that all sides have."""
    rows = sides[0][0].rows
    for found, _ in sides[1:]:
        rows = np.intersect1d(rows, found.rows, assume_unique=True)
    if not len(rows):
        raise FailedPrecondition(
            "EVALUATIONS_DIFFER",
            "they have no row in common",
            field="targets",
            remedy="evaluate with the same seed and max_rows",
        )
    metrics: list[Metric] = [
        metric
        for metric in sides[0][0].metrics
        if all(found.metric(metric.name) == metric for found, _ in sides[1:])
    ]
    made: dict[str, list[Side]] = {}
    places = [np.searchsorted(found.rows, rows) for found, _ in sides]
    for metric in metrics:
        pairs = list(zip(sides, places, strict=True))
        values = np.stack([found.values[metric.name][at, place] for (found, at), place in pairs])
        stats = np.stack([found.stats[metric.name][at, place] for (found, at), place in pairs])
        made[metric.name] = statistics.sides(values, stats)
    return statistics.compared(metrics, made)


def _scope(request: pb.ListEvaluationSamplesRequest) -> str:
    """What a page token is good for: the same question."""
    asked = pb.ListEvaluationSamplesRequest()
    asked.CopyFrom(request)
    asked.ClearField("page_token")
    asked.ClearField("page_size")
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()[:16]
