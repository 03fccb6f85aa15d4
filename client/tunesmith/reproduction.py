"""Runs the job behind a version again and compares the result bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict

from tunesmith import names
from tunesmith.api.jobs.v1 import spec_pb2
from tunesmith.api.registry.v1 import models_pb2
from tunesmith.errors import FailedPrecondition

if TYPE_CHECKING:
    from tunesmith.client import Client

SUFFIX = "-reproduced"


def reproduce(client: Client, version: str, timeout: float | None = None) -> dict[str, Any]:
    """Submits the same spec on the same data and waits; returns `version`, `reproduced`, `equal` and
    `differences`.

    Raises:
        FailedPrecondition: no job is known behind the version, or the job did not succeed.
        DeadlineExceeded: `timeout` seconds passed before the job had ended.
    """
    wanted = client.models.version(version)
    spec = _spec(client, wanted)
    job = client.jobs.submit(spec)
    job.wait(timeout)
    if not job.succeeded:
        raise FailedPrecondition(
            "STATE_CONFLICT",
            f"the job {job.name} ended as {job.state}, so there is nothing to compare",
            field="version",
            value=version,
            remedy=f"`tunesmith show {job.name}` says why",
        )
    made = client.models.version(job.proto.model_version)
    differences = differing(wanted, made)
    return {
        "version": wanted.name,
        "reproduced": made.name,
        "equal": not differences,
        "differences": differences,
    }


def _spec(client: Client, version: models_pb2.ModelVersion) -> spec_pb2.JobSpec:
    graph = client.lineage.graph(version.name, direction="upstream", depth=2)
    jobs = [node for node in graph.nodes if node.name == version.job]
    found = [node.facts["spec"] for node in jobs if "spec" in node.facts]
    if not found:
        raise FailedPrecondition(
            "STATE_CONFLICT",
            "no job is known that made this version",
            field="version",
            value=version.name,
            remedy="only what a job of this platform trained can be run again",
        )
    if any(edge.relation == "forked" for edge in graph.edges):
        raise FailedPrecondition(
            "STATE_CONFLICT",
            "the job was forked from a checkpoint, so its spec alone does not make it again",
            field="version",
            value=version.name,
            remedy="fork the same checkpoint again with `tunesmith fork`",
        )
    spec = ParseDict(json.loads(found[0]), spec_pb2.JobSpec())
    for node in graph.nodes:
        if node.kind == "prompt":
            spec.prompt_template = node.label
    parts = version.dataset_version.split("/")
    spec.dataset = f"{parts[3]}@{parts[5]}"
    spec.output.model = names.last_part(version.name.rpartition("/versions/")[0]) + SUFFIX
    return spec


def differing(wanted: models_pb2.ModelVersion, made: models_pb2.ModelVersion) -> list[str]:
    """Returns what differs between two versions: files by digest, facts by value; empty when nothing does."""
    before = {file.path: file.sha256 for file in wanted.manifest.files}
    after = {file.path: file.sha256 for file in made.manifest.files}
    files = _changes(before, after, "file ")
    # Equal files with other facts beside them are equal bits: a fact may tell of the machine.
    return files + _changes(wanted.manifest.properties, made.manifest.properties, "") if files else []


def _changes(before: Mapping[str, str], after: Mapping[str, str], prefix: str) -> list[str]:
    return [
        f"{prefix}{key}: {before.get(key, 'missing')} -> {after.get(key, 'missing')}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
