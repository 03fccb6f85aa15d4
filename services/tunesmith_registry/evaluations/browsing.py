"""Samples filtered, ordered and paged, by the numbers kept in memory for the evaluations last asked for."""

import asyncio
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from tunesmith.api.registry.v1 import evaluations_pb2 as pb
from tunesmith.errors import InvalidArgument
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.manifest import Manifest
from tunesmith_registry.evaluations import outputs, samples
from tunesmith_registry.evaluations.samples import Judgements, Numbers

_KEPT = 8
_PAGE_BYTES = 2 * 1024 * 1024
_TINY = 1e-12


class Shelf:
    """Judgements by the digest of their artifact; reading one twice at a time is done once."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._kept: OrderedDict[str, tuple[Manifest, Judgements]] = OrderedDict()
        self._lock = asyncio.Lock()

    async def judgements(self, evaluation: pb.Evaluation) -> tuple[Manifest, Judgements]:
        """The numbers of an evaluation, and where its files are."""
        async with self._lock:
            if evaluation.digest not in self._kept:
                found = await asyncio.to_thread(outputs.reread, self._blobs, evaluation)
                self._kept[evaluation.digest] = found
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(evaluation.digest)
            return self._kept[evaluation.digest]

    async def page(
        self, evaluation: pb.Evaluation, request: pb.ListEvaluationSamplesRequest, start: int, size: int
    ) -> tuple[list[pb.EvaluationSample], int, int]:
        """Samples from the `start`-th that matches on; how many match; the next page's start, or 0."""
        artifact, found = await self.judgements(evaluation)
        places = matching(found, request, len(evaluation.targets))
        chosen = places[start : start + size]
        lengths = np.cumsum(np.diff(found.places)[chosen])
        # The first comes whatever its size, so that every page goes on.
        fit = max(1, int(np.searchsorted(lengths, _PAGE_BYTES))) if len(chosen) else 0
        read = await asyncio.to_thread(
            lambda: [samples.sample(self._blobs, artifact, found, int(at)) for at in chosen[:fit]]
        )
        end = start + len(read)
        return read, len(places), end if end < len(places) else 0


def matching(
    found: Judgements, request: pb.ListEvaluationSamplesRequest, num_targets: int
) -> npt.NDArray[np.intp]:
    """Indices of the samples that match, in the order asked for; of equal ones the earlier row first.

    Raises:
        InvalidArgument: the metric or target is not part of the evaluation.
    """
    name = request.metric or found.metrics[0].name
    if found.metric(name) is None:
        known = ", ".join(metric.name for metric in found.metrics)
        raise InvalidArgument(
            "METRIC_UNKNOWN",
            f"the evaluation has no metric {name}",
            field="metric",
            value=name,
            remedy=f"use one of {known}",
        )
    if request.target_index >= num_targets:
        raise InvalidArgument(
            "FIELD_INVALID",
            f"the evaluation has {num_targets} targets",
            field="target_index",
            value=request.target_index,
            remedy=f"give 0 to {num_targets - 1}",
        )
    values = found.values[name]
    looked = values[request.target_index][None] if request.HasField("target_index") else values
    kept = np.ones(found.num_samples, dtype=bool)
    with np.errstate(invalid="ignore"):  # a sample without a value matches no bound
        if request.HasField("at_most"):
            kept &= (looked <= request.at_most).any(axis=0)
        if request.HasField("at_least"):
            kept &= (looked >= request.at_least).any(axis=0)
        spread = _spread(values)
        if request.disagree:
            kept &= spread > _TINY
    places = np.flatnonzero(kept)
    keys = _keys(request, values[request.target_index], spread)
    return places if keys is None else places[np.argsort(keys[places], kind="stable")]


def _spread(values: Numbers) -> Numbers:
    """Largest less smallest value of each sample, (samples,); 0 where a target has none."""
    there = np.isfinite(values).all(axis=0)
    found = np.zeros(values.shape[1])
    found[there] = np.ptp(values[:, there], axis=0)
    return found


def _keys(request: pb.ListEvaluationSamplesRequest, values: Numbers, spread: Numbers) -> Numbers | None:
    """What ascending order is made by; a sample without a value comes last."""
    if request.order == pb.SAMPLE_ORDER_ASCENDING:
        return np.where(np.isfinite(values), values, np.inf)
    if request.order == pb.SAMPLE_ORDER_DESCENDING:
        return np.where(np.isfinite(values), -values, np.inf)
    if request.order == pb.SAMPLE_ORDER_DIFFERENCE:
        return -spread
    return None
