"""The samples of an evaluation, read from its artifact: checked line by line, and as arrays of numbers."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from tunesmith.api.registry.v1 import evaluations_pb2 as pb
from tunesmith.errors import FailedPrecondition
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.manifest import Manifest

SAMPLES, METRICS = "samples.jsonl", "metrics.json"
MOST_ROWS = 100_000
_MOST_LINE_BYTES = 16 * 1024 * 1024
_MOST_METRICS = 128
Numbers = npt.NDArray[np.float64]

# What a metric's statistics are, by its aggregate: how many numbers a row has.
WIDTHS = {"mean": 2, "perplexity": 2, "bleu": 10}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of an evaluation; `aggregate` is a key of WIDTHS."""

    name: str
    aggregate: str
    higher_is_better: bool


@dataclass(frozen=True, slots=True)
class Judgements:
    """All numbers of an evaluation.

    Attributes:
        rows: line in the dataset of each sample, ascending.
        places: offset of each sample's line in the file, and after them its length.
        values: by metric, (targets, samples), NaN where there is none.
        stats: by metric, (targets, samples, width), zero where there is no value.
    """

    metrics: Sequence[Metric]
    rows: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    values: Mapping[str, Numbers]
    stats: Mapping[str, Numbers]

    @property
    def num_samples(self) -> int:
        """Rows judged."""
        return len(self.rows)

    def metric(self, name: str) -> Metric | None:
        """The metric of a name; None when there is none."""
        return next((metric for metric in self.metrics if metric.name == name), None)


def read(blobs: BlobStore, artifact: Manifest, num_targets: int) -> Judgements:
    """Reads an evaluation's artifact. Blocks; a second for 100 MB.

    Raises:
        FailedPrecondition: it is not what an evaluation leaves.
        NotFound: a file of it is not stored.
    """
    metrics = _metrics(blobs, artifact)
    with blobs.read(_digest_of(artifact, SAMPLES)) as file:
        rows: list[int] = []
        places, samples = [0], []
        for line in _lines(file):
            samples.append(_numbers(line, len(rows), metrics, num_targets))
            rows.append(samples[-1][0])
            places.append(places[-1] + len(line))
    if not rows or any(after <= before for before, after in pairwise(rows)):
        raise corrupt("its rows are none or not in order")
    values = {}
    stats = {}
    for at, metric in enumerate(metrics):
        values[metric.name] = np.array([sample[1][at] for sample in samples], dtype=np.float64).T
        stats[metric.name] = np.array([sample[2][at] for sample in samples], dtype=np.float64).swapaxes(0, 1)
        if not np.isfinite(stats[metric.name]).all():
            raise corrupt(f"a number of {metric.name} is not finite")
    return Judgements(metrics, np.array(rows), np.array(places), values, stats)


def sample(blobs: BlobStore, artifact: Manifest, judgements: Judgements, index: int) -> pb.EvaluationSample:
    """Reads one sample whole."""
    start, end = judgements.places[index : index + 2].tolist()
    return _sample(orjson.loads(blobs.read_range(_digest_of(artifact, SAMPLES), start, end - start)))


def corrupt(why: str) -> FailedPrecondition:
    """The error of an artifact that is no evaluation."""
    return FailedPrecondition(
        "ARTIFACT_CORRUPT",
        f"this is no evaluation: {why}",
        field="manifest_digest",
        remedy="submit the evaluation again; the node that made it may have another version",
    )


def _digest_of(artifact: Manifest, path: str) -> str:
    for file in artifact.files:
        if file.path == path:
            return file.sha256
    raise corrupt(f"{path} is missing")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    for number, line in enumerate(iter(lambda: file.readline(_MOST_LINE_BYTES + 1), b"")):
        if len(line) > _MOST_LINE_BYTES or number >= MOST_ROWS:
            raise corrupt("a line, or the file, is too long")
        yield line


def _metrics(blobs: BlobStore, artifact: Manifest) -> list[Metric]:
    try:
        said = json.loads(blobs.read_bytes(_digest_of(artifact, METRICS)))["metrics"]
        metrics = [Metric(str(m["name"]), str(m["aggregate"]), bool(m["higher_is_better"])) for m in said]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise corrupt(f"{METRICS} cannot be read: {error!r}") from error
    names = {metric.name for metric in metrics if 0 < len(metric.name) <= 100 and metric.aggregate in WIDTHS}
    if len(names) != len(metrics) or not 0 < len(metrics) <= _MOST_METRICS:
        raise corrupt("its metrics are none, twice the same or of an unknown kind")
    return metrics


def _numbers(
    line: bytes, at: int, metrics: Sequence[Metric], num_targets: int
) -> tuple[int, list[list[float]], list[list[list[float]]]]:
    """Row, values by metric and target, statistics by metric and target."""
    try:
        said = orjson.loads(line)
        answers = said["answers"]
        if len(answers) != num_targets:
            raise ValueError(f"{len(answers)} answers, {num_targets} targets")
        row = int(said["row"])
        _sample(said)
        values = [[_value(answer["scores"].get(metric.name)) for answer in answers] for metric in metrics]
        stats = [[_stats(metric, answer) for answer in answers] for metric in metrics]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise corrupt(f"line {at + 1} of {SAMPLES} cannot be read: {error!r}"[:500]) from error
    return row, values, stats


def _value(said: Any) -> float:
    return math.nan if said is None else _finite(said)


def _finite(said: Any) -> float:
    number = float(said)
    if not math.isfinite(number):
        raise ValueError("a number is not finite")
    return number


def _stats(metric: Metric, answer: Mapping[str, Any]) -> list[float]:
    value, width = answer["scores"].get(metric.name), WIDTHS[metric.aggregate]
    if value is None:
        return [0.0] * width
    if metric.aggregate == "mean":
        return [float(value), 1.0]
    stats = [float(item) for item in answer["stats"][metric.name]]
    if len(stats) != width:
        raise ValueError(f"{len(stats)} numbers of {metric.name} instead of {width}")
    return stats


def _sample(said: Mapping[str, Any]) -> pb.EvaluationSample:
    return pb.EvaluationSample(
        row=said["row"],
        prompt=[pb.SampleMessage(role=each["role"], content=each["content"]) for each in said["prompt"]],
        reference=said["reference"] or "",
        answers=[
            pb.SampleAnswer(
                text=answer["text"],
                scores=answer["scores"],
                notes=answer["notes"],
                num_tokens=answer["num_tokens"],
            )
            for answer in said["answers"]
        ],
    )
