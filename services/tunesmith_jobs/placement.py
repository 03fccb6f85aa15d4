"""One pass of the scheduler as a pure function: who starts where, who gives way, and why the rest waits.

The rules, in their order:

1. A job that moves goes to its target, where room is kept for it from the request on.
2. Higher priority first. Within a priority the project with the smallest dominant share (of slots or GPUs in
   use, divided by its weight) is next, with its oldest job.
3. A job gets all its nodes at once or none. What fits is taken: the node with its snapshots, or the fullest.
4. What does not fit waits for room that is being freed anyway; failing that, jobs of strictly lower priority
   give way. In both cases the room is kept, so that nobody behind it can take it.
5. A job that has waited for `PATIENCE_SECONDS` and still does not fit gets the free room of the nodes nearest
   to fitting kept; one such job a priority, the others fill what it does not need. Without this a job over
   many nodes or GPUs would starve behind small ones.
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from tunesmith_jobs import verdict
from tunesmith_jobs.needs import Need, Quota, Usage, Waiting, ever_within, over_quota
from tunesmith_jobs.preemption import victims
from tunesmith_jobs.room import Node, Room, Running, Vacancy, misfit

PATIENCE_SECONDS = 120.0
_MOST_PREEMPTIONS = 50  # in one pass, each looks at every node; the next pass goes on


@dataclass(frozen=True, slots=True)
class Placement:
    """Nodes given to a job, and the GPUs on each."""

    job: Waiting
    nodes: tuple[str, ...]
    gpus: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Preemption:
    """Jobs that give way to a waiting one."""

    job: Waiting
    victims: tuple[Running, ...]


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why a job stays in the queue."""

    job: Waiting
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What a pass found. Each waiting job is either placed or blocked; one that others give way to is both
    blocked and named by a preemption."""

    placements: list[Placement]
    preemptions: list[Preemption]
    blocked: list[Blocked]


def decide(
    waiting: Iterable[Waiting],
    nodes: Iterable[Node],
    running: Iterable[Running],
    quotas: Mapping[str, Quota],
    now: float,
) -> Decision:
    """Decides upon every waiting job. `now` is Unix time in seconds."""
    return Pass(waiting, nodes, running, quotas, now).run()


class Pass:
    """A pass while it goes on; `room` and `usage` show what is left after the decisions so far."""

    def __init__(
        self,
        waiting: Iterable[Waiting],
        nodes: Iterable[Node],
        running: Iterable[Running],
        quotas: Mapping[str, Quota],
        now: float,
    ) -> None:
        holding = list(running)
        self.room, self.quotas, self._now = Room(nodes, holding), quotas, now
        self.waiting = sorted(waiting, key=lambda job: (-job.priority, job.job_id))
        self.usage: dict[str, Usage] = defaultdict(Usage)
        for attempt in holding:
            self.usage[attempt.project].add(len(attempt.gpus), attempt.num_gpus)
        self.decision = Decision([], [], [])
        self._open = {job.job_id: job for job in self.waiting}  # not decided yet
        self._full: dict[Need, tuple[str, str]] = {}  # does not fit: why
        self._no_vacancy: set[Need] = set()
        self._no_victims: set[Need] = set()
        self._nothing_to_keep: set[Need] = set()
        self._kept_at: int | None = None  # the priority for which room is already kept
        self._shut: set[str] = set()  # projects whose quota is kept for a job that has waited long
        open_nodes = [node for node in self.room.nodes.values() if not node.closed]
        self._slots = max(sum(node.slots for node in open_nodes), 1)
        self._gpus = max(sum(len(node.gpus) for node in open_nodes), 1)
        self._promised = {v.held_for for vacancies in self.room.vacancies.values() for v in vacancies}
        self._lowest = min(
            (a.priority for attempts in self.room.lasting.values() for a in attempts), default=None
        )
        for attempt in holding:
            if attempt.move_to in self.room.left:
                self.room.take(_moved(attempt), attempt.move_to, attempt.job_id)

    def run(self, until: str = "") -> Decision:
        """Decides upon all jobs, or those up to and with `until`."""
        for job in self.in_order():
            self._decide(job)
            self._open.pop(job.job_id)
            if job.job_id == until:
                break
        return self.decision

    def in_order(self) -> Iterator[Waiting]:
        """Yields the jobs in the order of the rules; the order depends on what was placed before."""
        movers = [job for job in self.waiting if self._target(job)]
        yield from movers
        rest = [job for job in self.waiting if not self._target(job)] if movers else self.waiting
        for _, level in groupby(rest, key=lambda job: job.priority):
            yield from self._fairly(level)

    def _fairly(self, level: Iterable[Waiting]) -> Iterator[Waiting]:
        queues: dict[str, deque[Waiting]] = defaultdict(deque)
        for job in level:
            queues[job.project].append(job)
        heap = [(self._share(project), queue[0].job_id, project) for project, queue in queues.items()]
        heapq.heapify(heap)
        while heap:
            _, _, project = heapq.heappop(heap)
            queue = queues[project]
            yield queue.popleft()
            if queue:
                heapq.heappush(heap, (self._share(project), queue[0].job_id, project))

    def _share(self, project: str) -> float:
        usage, quota = self.usage[project], self.quotas.get(project)
        share = max(usage.nodes / self._slots, usage.gpus / self._gpus)
        return share / (quota.weight if quota else 1.0)

    def _target(self, job: Waiting) -> str:
        """Returns the node a job must go to because it moves; none once that node takes nothing."""
        node = self.room.nodes.get(job.move_to)
        return job.move_to if node is not None and not node.closed else ""

    def _decide(self, job: Waiting) -> None:
        if target := self._target(job):
            fits = job.need.num_nodes == 1 and self.room.fits(job.need, target)
            if fits:
                self._place(job, (target,))
            else:
                self._count(job)  # it is on its way: nothing else may use its quota up
                self._block(job, "NO_FREE_SLOT")
            return
        if over := self._over_quota(job):
            self._block(job, "QUOTA", over)
            return
        if job.need in self._full:
            nodes: tuple[str, ...] = ()
        else:
            nodes, num_fitting = self.room.choose(job.need, job.last_node, job.avoid)
            if not nodes:
                self._full[job.need] = verdict.why(self.room, job.need, num_fitting)
        if nodes:
            self._place(job, nodes)
        elif self._await_vacancies(job) or self._preempt(job):
            self._block(job, "ROOM_PROMISED")
        else:
            self._keep_room(job)
            self._block(job, *self._full[job.need])

    def _over_quota(self, job: Waiting) -> str:
        quota = self.quotas.get(job.project)
        if quota is None:
            return ""
        over = over_quota(quota, self.usage[job.project], job.need)
        if over and self._is_overdue(job) and ever_within(quota, job.need):
            self._shut.add(job.project)  # or small jobs would use up what it waits for, again and again
        if not over and job.project in self._shut:
            over = "the project's quota is kept for a job that has waited long"
        return over

    def _is_overdue(self, job: Waiting) -> bool:
        return self._now - job.since >= PATIENCE_SECONDS

    def _place(self, job: Waiting, nodes: tuple[str, ...]) -> None:
        gpus = tuple(self.room.take(job.need, node_id) for node_id in nodes)
        self.decision.placements.append(Placement(job, nodes, gpus))
        self._count(job)

    def _block(self, job: Waiting, reason: str, message: str = "") -> None:
        self.decision.blocked.append(Blocked(job, reason, message or verdict.MESSAGES[reason]))

    def _count(self, job: Waiting) -> None:
        self.usage[job.project].add(job.need.num_nodes, job.need.num_gpus)
        if job.job_id in self._promised:
            self._no_vacancy.clear()  # what was promised to it is free for others now

    def _vacancies(self, job: Waiting) -> Callable[[str], list[Vacancy]]:
        """Returns the function that gives the room of a node which this job may wait for."""

        def of(node_id: str) -> list[Vacancy]:
            found = [v for v in self.room.vacancies.get(node_id, ()) if self._may_use(job, v)]
            return sorted(found, key=lambda v: v.held_for != job.job_id)

        return of

    def _may_use(self, job: Waiting, vacancy: Vacancy) -> bool:
        if vacancy.held_for in ("", job.job_id):
            return True
        holder = self._open.get(vacancy.held_for)
        return holder is None or holder.priority < job.priority

    def _await_vacancies(self, job: Waiting) -> bool:
        """Keeps room that is being freed anyway, if it is enough; what is free now counts too."""
        own = job.job_id in self._promised
        if not any(self.room.vacancies.values()) or (job.need in self._no_vacancy and not own):
            return False
        vacancies, found = self._vacancies(job), []
        for node_id in self._might_free(job.need):
            some = vacancies(node_id)
            if self.room.missing(job.need, node_id, some) == (0, 0):
                used = _fewest(self.room, job.need, node_id, some)
                mine = any(v.held_for == job.job_id for v in used)
                found.append((not mine, len(used), node_id, used))
        if len(found) < job.need.num_nodes:
            if not own:
                self._no_vacancy.add(job.need)
            return False
        for *_, node_id, used in sorted(found, key=lambda f: f[:3])[: job.need.num_nodes]:
            self.room.hold(job.need, node_id, used, job.job_id)
        self._count(job)
        return True

    def _might_free(self, need: Need) -> list[str]:
        """The nodes that may take the job with what is being freed; for one node only those where some is."""
        if need.num_nodes > 1:
            return [node.node_id for node in self.room.open(need)]
        freeing = [node_id for node_id, vacancies in self.room.vacancies.items() if vacancies]
        nodes = [(node_id, self.room.nodes[node_id]) for node_id in freeing]
        return [node_id for node_id, node in nodes if not node.closed and not misfit(need, node)]

    def _preempt(self, job: Waiting) -> bool:
        """Lets jobs of lower priority give way, if that is enough."""
        if self._lowest is None or self._lowest >= job.priority or job.need in self._no_victims:
            return False
        if len(self.decision.preemptions) >= _MOST_PREEMPTIONS:
            return False
        vacancies = self._vacancies(job)
        nodes, giving_way = victims(self.room, job, vacancies)
        if not giving_way:
            self._no_victims.add(job.need)
            return False
        for attempt in giving_way:
            self.room.dismiss(attempt, job.job_id)
        for node_id in nodes:
            used = _fewest(self.room, job.need, node_id, vacancies(node_id))
            self.room.hold(job.need, node_id, used, job.job_id)
        self.decision.preemptions.append(Preemption(job, giving_way))
        self._count(job)
        return True

    def _keep_room(self, job: Waiting) -> None:
        """Keeps what is free on the nodes nearest to fitting, if the job has waited long enough."""
        small = job.need.num_nodes == 1 and not job.need.gpus  # it fits where any slot is free
        if small or self._kept_at == job.priority or job.need in self._nothing_to_keep:
            return
        if not self._is_overdue(job):
            return
        nodes = [node.node_id for node in self.room.open(job.need)]
        if len(nodes) < job.need.num_nodes:
            return
        nodes.sort(key=lambda node_id: (*self.room.missing(job.need, node_id), node_id))
        for node_id in nodes[: job.need.num_nodes]:
            left = self.room.left[node_id]
            if left.slots > 0 and (job.need.gpus == 0 or left.gpus):
                self._kept_at = job.priority
                self.room.take(job.need, node_id, job.job_id)
        if self._kept_at != job.priority:
            self._nothing_to_keep.add(job.need)


def _moved(attempt: Running) -> Need:
    """What a moving job needs at its target: what it has now."""
    return Need(gpus=max(map(len, attempt.gpus.values()), default=0))


def _fewest(room: Room, need: Need, node_id: str, vacancies: Sequence[Vacancy]) -> list[Vacancy]:
    """Returns the first vacancies that together make room."""
    used: list[Vacancy] = []
    for vacancy in vacancies:
        lacking_gpus, lacking_slots = room.missing(need, node_id, used)
        if not lacking_gpus and not lacking_slots:
            break
        if (lacking_gpus and vacancy.gpus) or (lacking_slots and vacancy.slots):
            used.append(vacancy)
    return used
