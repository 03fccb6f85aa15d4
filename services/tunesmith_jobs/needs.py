"""What waits: jobs as the scheduler sees them, and the quotas of their projects."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Need:
    """What a job needs of each of its nodes. Jobs of equal needs are decided alike."""

    num_nodes: int = 1
    gpus: int = 0
    memory_bytes: int = 0
    labels: frozenset[tuple[str, str]] = frozenset()
    node: str = ""

    @property
    def num_gpus(self) -> int:
        """GPUs over all its nodes."""
        return self.num_nodes * self.gpus


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued job. `since` is when it was queued, Unix time in seconds; ids grow with age.

    `last_node` holds its snapshots, `move_to` is where it moves, `avoid` are nodes that failed it.
    """

    job_id: str
    project: str = "default"
    need: Need = Need()
    priority: int = 0
    since: float = 0.0
    last_node: str = ""
    move_to: str = ""
    avoid: frozenset[str] = frozenset()
    display_name: str = field(default="", compare=False)
    revision: int = field(default=0, compare=False)
    noted: tuple[str, str] = field(default=("", ""), compare=False)  # reason and message its condition says


@dataclass(frozen=True, slots=True)
class Quota:
    """What a project may use at once; None: no limit. `weight` is its share beside other projects."""

    max_running_jobs: int | None = None
    max_gpus: int | None = None
    weight: float = 1.0


@dataclass(slots=True)
class Usage:
    """What a project uses now."""

    jobs: int = 0
    nodes: int = 0
    gpus: int = 0

    def add(self, nodes: int, gpus: int) -> None:
        """Counts one more job."""
        self.jobs, self.nodes, self.gpus = self.jobs + 1, self.nodes + nodes, self.gpus + gpus


def over_quota(quota: Quota, usage: Usage, need: Need) -> str:
    """Returns as a sentence which limit a job would break, or nothing."""
    if quota.max_running_jobs is not None and usage.jobs + 1 > quota.max_running_jobs:
        return f"the project's quota of {quota.max_running_jobs} running jobs is used up"
    if need.gpus and quota.max_gpus is not None and usage.gpus + need.num_gpus > quota.max_gpus:
        if need.num_gpus > quota.max_gpus:
            return f"it needs {need.num_gpus} GPUs and the project's quota is {quota.max_gpus}"
        return f"the project's quota of {quota.max_gpus} GPUs does not leave the {need.num_gpus} it needs"
    return ""


def ever_within(quota: Quota, need: Need) -> bool:
    """Whether the job keeps the quota when nothing else of the project runs."""
    return not over_quota(quota, Usage(), need)
