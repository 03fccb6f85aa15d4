"""What an evaluation job left, made into an evaluation: scores, intervals, comparisons."""

import math

from tunesmith.api.jobs.v1 import events_pb2 as jobs_events_pb2
from tunesmith.api.registry.v1 import evaluations_pb2 as pb
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.manifest import Manifest
from tunesmith_registry.evaluations import samples, statistics


def judge(
    blobs: BlobStore, artifact: Manifest, job: str, ready: jobs_events_pb2.JobOutputReady
) -> pb.Evaluation:
    """Makes the evaluation of a verified artifact. Blocks: some 10 s for 100,000 rows of two targets.

    Raises:
        FailedPrecondition: the artifact is not what an evaluation leaves.
    """
    if artifact.kind != "evaluation":
        raise samples.corrupt(f"the output is of kind {artifact.kind}")
    found = samples.read(blobs, artifact, len(ready.targets))
    project, evaluation_id = job.split("/")[1], job.rpartition("/")[2]
    made = pb.Evaluation(
        name=f"projects/{project}/evaluations/{evaluation_id}",
        evaluation_id=evaluation_id,
        job=job,
        targets=ready.targets,
        base_model=ready.base_model,
        dataset_version=ready.dataset_version,
        dataset_digest=artifact.properties.get("dataset_digest", ""),
        spec=ready.evaluation,
        digest=artifact.digest,
        manifest=artifact.proto(),
        num_rows=found.num_samples,
    )
    sides = {
        metric.name: statistics.sides(found.values[metric.name], found.stats[metric.name])
        for metric in found.metrics
    }
    for index, target in enumerate(ready.targets):
        for metric in found.metrics:
            scored = statistics.score(metric, sides[metric.name][index])
            if scored is None:
                made.warnings.append(f"{metric.name} has no value on any row of {target.name}")
                continue
            value, low, high, number = scored
            made.scores.add(
                target=target.name,
                target_index=index,
                metric=metric.name,
                value=value,
                ci_low=low,
                ci_high=high,
                num_samples=number,
                higher_is_better=metric.higher_is_better,
            )
            if number < found.num_samples:
                lacking = found.num_samples - number
                made.warnings.append(
                    f"{metric.name} has no value on {lacking} of {found.num_samples} rows of {target.name}"
                )
    if not made.scores:
        raise samples.corrupt("no metric has a value on any row")
    made.comparisons.extend(statistics.compared(found.metrics, sides))
    return made


def metrics_of(artifact: Manifest) -> dict[str, float]:
    """The metrics of an exported model: those its training ended with, as they stand in its properties."""
    found = {}
    for name, metric in (
        ("final_loss", "train/loss"),
        ("first_loss", "first_loss"),
        ("eval_loss", "eval/loss"),
    ):
        try:
            found[metric] = float(artifact.properties[name])
        except (KeyError, ValueError):
            continue
    return {metric: value for metric, value in found.items() if math.isfinite(value)}


def reread(blobs: BlobStore, evaluation: pb.Evaluation) -> tuple[Manifest, samples.Judgements]:
    """The samples of an evaluation that was entered."""
    artifact = manifest.read(blobs, evaluation.digest)
    return artifact, samples.read(blobs, artifact, len(evaluation.targets))
