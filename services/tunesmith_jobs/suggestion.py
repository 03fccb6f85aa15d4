"""The smallest single change that lets a waiting job start at the next pass.

Each proposal is tried: the pass is decided again with the change made, and only one that places the job is
named. So what is named works, whatever else waits. Order: what harms nobody comes before what stops another
job, and both before a change of what the job itself asks for.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from tunesmith.api.jobs.v1 import queue_pb2
from tunesmith_jobs.needs import Quota, Waiting, over_quota
from tunesmith_jobs.placement import Pass
from tunesmith_jobs.room import Node, Running, Vacancy, misfit

_TRIES = 8  # of each kind; every try decides upon all jobs ahead
_MAX_PRIORITY = 1000


@dataclass(frozen=True, slots=True)
class Picture:
    """All that a pass decides upon."""

    waiting: Mapping[str, Waiting]
    running: Mapping[str, Running]
    nodes: Mapping[str, Node]
    quotas: Mapping[str, Quota]
    now: float

    def decide(self, until: str) -> Pass:
        """Decides upon the jobs up to `until`."""
        found = Pass(self.waiting.values(), self.nodes.values(), self.running.values(), self.quotas, self.now)
        found.run(until)
        return found

    def starts(self, job_id: str) -> bool:
        """Whether the next pass places the job."""
        return any(placement.job.job_id == job_id for placement in self.decide(job_id).decision.placements)

    def with_job(self, job: Waiting) -> "Picture":
        """The picture with this job as it is given."""
        return replace(self, waiting={**self.waiting, job.job_id: job})


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change, and the picture once it is made."""

    target: str
    value: str
    text: str
    picture: Picture

    @property
    def message(self) -> queue_pb2.SuggestedChange:
        return queue_pb2.SuggestedChange(target=self.target, value=self.value, text=self.text)


def suggest(picture: Picture, job_id: str) -> Proposal | None:
    """Returns the smallest change found, or nothing if no single one helps."""
    job = picture.waiting[job_id]
    for kind in (_quota, _open_node, _priority, _end_other, _node, _labels, _memory, _gpus, _num_nodes):
        for proposal in islice(kind(picture, job), _TRIES):
            if proposal.picture.starts(job_id):
                return proposal
    return None


def _quota(picture: Picture, job: Waiting) -> Iterator[Proposal]:
    quota = picture.quotas.get(job.project)
    if quota is None:
        return
    usage = picture.decide(job.job_id).usage[job.project]
    if not over_quota(quota, usage, job.need):
        return
    jobs, gpus = quota.max_running_jobs, quota.max_gpus
    jobs = None if jobs is None else max(jobs, usage.jobs + 1)
    gpus = None if gpus is None else max(gpus, usage.gpus + job.need.num_gpus)
    limits = {"max_running_jobs": jobs, "max_gpus": gpus}
    value = ",".join(f"{name}={limit}" for name, limit in limits.items() if limit is not None)
    yield Proposal(
        f"projects/{job.project}/quota",
        value,
        f"raise the project's quota to {value.replace(',', ' and ')}",
        replace(
            picture,
            quotas={**picture.quotas, job.project: replace(quota, max_running_jobs=jobs, max_gpus=gpus)},
        ),
    )


def _open_node(picture: Picture, job: Waiting) -> Iterator[Proposal]:
    words = {
        "NODE_CORDONED": "uncordon node {0}: `tunesmith nodes uncordon {0}`",
        "NODE_NOT_READY": "bring node {0} back: its agent does not answer",
    }
    for rule, text in words.items():
        for node in _sorted(picture):
            if node.closed == rule and not misfit(job.need, node):
                nodes = {**picture.nodes, node.node_id: replace(node, closed="")}
                yield Proposal(
                    f"nodes/{node.node_id}", "READY", text.format(node.node_id), replace(picture, nodes=nodes)
                )


def _priority(picture: Picture, job: Waiting) -> Iterator[Proposal]:
    above = {other.priority for other in picture.waiting.values() if other.job_id != job.job_id}
    for level in sorted(level for level in above if job.priority <= level < _MAX_PRIORITY):
        yield Proposal(
            "spec.resources.priority",
            str(level + 1),
            f"raise its priority above {level}: `tunesmith update {_called(job)} --priority {level + 1}`",
            picture.with_job(replace(job, priority=level + 1)),
        )


def _end_other(picture: Picture, job: Waiting) -> Iterator[Proposal]:
    """Other jobs on fitting nodes: the least important, the one with the least done first."""
    room = Pass((), picture.nodes.values(), picture.running.values(), {}, picture.now).room
    found = {
        attempt.job_id: attempt
        for node in room.open(job.need)
        for attempt in room.lasting.get(node.node_id, ())
        if room.missing(job.need, node.node_id, [Vacancy(1, len(attempt.gpus[node.node_id]))]) == (0, 0)
    }
    for other in sorted(found.values(), key=lambda a: (a.priority, a.trained_seconds, a.job_id)):
        running = {job_id: attempt for job_id, attempt in picture.running.items() if job_id != other.job_id}
        yield Proposal(
            f"projects/{other.project}/jobs/{other.job_id}",
            "PAUSE",
            f"free the slot of job {_called(other)}: `tunesmith {_aside(job, other)}pause {_called(other)}`",
            replace(picture, running=running),
        )


def _called(job: Waiting | Running) -> str:
    return job.display_name or job.job_id


def _aside(job: Waiting, other: Running) -> str:
    """The option without which a command looks for another project's job in the wrong place."""
    return "" if other.project == job.project else f"--project {other.project} "


def _asking(
    picture: Picture, job: Waiting, field: str, value: object, text: str, **change: object
) -> Proposal:
    need = replace(job.need, **change)  # type: ignore[arg-type]
    return Proposal(
        f"spec.resources.{field}",
        str(value),
        f"submit it again {text}",
        picture.with_job(replace(job, need=need)),
    )


def _node(picture: Picture, job: Waiting) -> Iterator[Proposal]:
    if job.need.node:
        yield _asking(picture, job, "node", "", "without spec.resources.node", node="")


def _labels(picture: Picture, job: Waiting) -> Iterator[Proposal]:
    for key, value in sorted(job.need.labels):
        rest = job.need.labels - {(key, value)}
        yield _asking(picture, job, f"node_labels.{key}", "", f"without the node label {key}", labels=rest)


def _memory(picture: Picture, job: Waiting) -> Iterator[Proposal]:
    for size in _below(picture, job.need.memory_bytes, lambda node: node.memory_bytes):
        text = f"with spec.resources.memory_bytes of at most {size}"
        yield _asking(picture, job, "memory_bytes", size, text, memory_bytes=size)


def _gpus(picture: Picture, job: Waiting) -> Iterator[Proposal]:
    for number in range(job.need.gpus - 1, -1, -1):
        text = f"with spec.resources.gpus_per_node of {number}"
        yield _asking(picture, job, "gpus_per_node", number, text, gpus=number)


def _num_nodes(picture: Picture, job: Waiting) -> Iterator[Proposal]:
    for number in range(job.need.num_nodes - 1, 0, -1):
        text = f"with spec.resources.num_nodes of {number}"
        yield _asking(picture, job, "num_nodes", number, text, num_nodes=number)


def _below(picture: Picture, most: int, size: Callable[[Node], int]) -> list[int]:
    """Sizes of open nodes below what is asked, the largest first."""
    return sorted(
        {size(node) for node in _sorted(picture) if not node.closed and size(node) < most}, reverse=True
    )


def _sorted(picture: Picture) -> list[Node]:
    return sorted(picture.nodes.values(), key=lambda node: node.node_id)
