"""What can be chatted with, evaluated or exported, as people write it."""

from __future__ import annotations

from tunesmith import names
from tunesmith.api.registry.v1 import models_pb2
from tunesmith.connection import Connection
from tunesmith.errors import InvalidArgument, NotFound
from tunesmith.job import get_job


async def resolve(core: Connection, text: str) -> str:
    """Returns the resource name of `BASE`, `MODEL@VERSION` (a number, alias or stage), `job:JOB` (its newest
    checkpoint) or `job:JOB@STEP`; a resource name stays as it is.

    Raises NotFound when the job has no such checkpoint, InvalidArgument when the step is no number.
    """
    if text.startswith("projects/"):
        return text
    if text.startswith("job:"):
        job, _, step = text.removeprefix("job:").partition("@")
        return await _checkpoint(core, job, step)
    if "@" in text:
        return names.model_version(core.project, text)
    return names.resource(core.project, "baseModels", text)


async def _checkpoint(core: Connection, job: str, step: str) -> str:
    if step and not step.isdecimal():
        raise InvalidArgument(
            "NAME_INVALID",
            f"{step} is no step",
            field="targets",
            value=f"job:{job}@{step}",
            remedy="write job:JOB for the newest checkpoint, or job:JOB@STEP",
        )
    found = await get_job(core, names.resource(core.project, "jobs", job))
    parent = f"{found.name.rpartition('/')[0]}/{found.job_id}"
    request = models_pb2.ListCheckpointsRequest(parent=parent, page_size=1000)
    async for page in core.pages(core.models.ListCheckpoints, request):
        for point in page.checkpoints:
            if not point.expired and (not step or point.step == int(step)):
                return point.name
    raise NotFound(
        "CHECKPOINT_NOT_FOUND",
        f"the job {job} has no checkpoint" + (f" of step {step}" if step else " yet"),
        field="targets",
        value=f"job:{job}" + (f"@{step}" if step else ""),
        remedy=f"`tunesmith checkpoints list {job}` lists them; `tunesmith checkpoint {job}` asks for one",
    )
