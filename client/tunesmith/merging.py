"""Works the adapter of a version into its base model, as a job, and waits for the version it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith import names
from tunesmith.api.registry.v1 import models_pb2
from tunesmith.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from tunesmith.client import Client
    from tunesmith.faces import Sync
    from tunesmith.job import Job

SUFFIX = "-merged"


def made_before(client: Client, version: models_pb2.ModelVersion, model: str, weights: str) -> str:
    """Returns the version of `model` that is `version` merged, with such weights; empty: there is none."""
    try:
        for found in client.models.versions(model):
            said = found.manifest.properties
            fits = said.get("format") == "merged" and said.get("weights", "float32") == (weights or "float32")
            if fits and found.derived_from == version.name:
                return found.name
    except NotFound:
        pass
    return ""


def submit(client: Client, version: models_pb2.ModelVersion, model: str, weights: str) -> Job[Sync]:
    """Submits the job that merges."""
    return client.evaluations.export(version.name, model, format="merged", weights=weights)


def result(job: Job[Sync]) -> str:
    """Returns the version an ended job made. Raises FailedPrecondition when it made none."""
    if not job.succeeded:
        raise FailedPrecondition(
            "STATE_CONFLICT",
            f"the job {job.name} ended as {job.state}, so there is no merged model",
            field="version",
            value=job.name,
            remedy=f"`tunesmith show {names.last_part(job.name)}` says why",
        )
    return str(job.proto.model_version)


def merge(
    client: Client, version: str, model: str = "", *, weights: str = "", timeout: float | None = None
) -> str:
    """Returns the name of a version that is `version` with its adapter worked in; one made before is taken.

    It is registered under `model`, by default `MODEL-merged`. `weights` are `float32` or `bfloat16`.

    Raises:
        FailedPrecondition: the job did not succeed.
        DeadlineExceeded: `timeout` seconds passed before the job had ended.
    """
    wanted = client.models.version(version)
    into = model or default_model(wanted)
    known = made_before(client, wanted, into, weights)
    return known or result(submit(client, wanted, into, weights).wait(timeout))


def default_model(version: models_pb2.ModelVersion) -> str:
    """Returns the model that merged versions of a version's model go to."""
    return names.last_part(version.name.rpartition("/versions/")[0]) + SUFFIX
