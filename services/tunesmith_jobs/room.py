"""The room of the fleet during one pass of the scheduler: what is free, what will be, and who gets it.

Room only shrinks while a pass goes on. Nodes of the same make are kept together by what they have left, so
that finding one costs the number of makes and fillings, not the number of nodes.
"""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from tunesmith_jobs.needs import Need


@dataclass(frozen=True, slots=True)
class Node:
    """A node as registered. `closed` is the rule by which it takes nothing new; empty while it does."""

    node_id: str
    slots: int = 1
    gpus: tuple[int, ...] = ()
    memory_bytes: int = 0
    labels: frozenset[tuple[str, str]] = frozenset()
    closed: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """A job that holds nodes: the GPUs taken on each. `ending`: they will be free without our doing.

    `held_for` is the job it gives way to, `move_to` the node it is about to go to.
    """

    job_id: str
    project: str
    priority: int
    gpus: Mapping[str, tuple[int, ...]]
    ending: bool = False
    held_for: str = ""
    move_to: str = ""
    trained_seconds: float = field(default=0.0, compare=False)
    epoch: int = 0
    display_name: str = field(default="", compare=False)

    @property
    def num_gpus(self) -> int:
        return sum(map(len, self.gpus.values()))


@dataclass(frozen=True, slots=True)
class Vacancy:
    """Room of a node that will be free soon, without more being done; `held_for` names the job it is for."""

    slots: int
    gpus: int
    held_for: str = ""


@dataclass(slots=True)
class _Make:
    """Nodes that differ in name only. `shelf`: their names, sorted, by what they have left."""

    kind: Node
    nodes: list[Node] = field(default_factory=list)
    shelf: dict[tuple[int, int], list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class _Left:
    slots: int
    gpus: tuple[int, ...]

    @property
    def filling(self) -> tuple[int, int]:
        return self.slots, len(self.gpus)


def misfit(need: Need, node: Node) -> str:
    """Returns the rule by which a node can never take the job, busy or not; empty if it could."""
    if need.node and need.node != node.node_id:
        return "OTHER_NODE"
    if not need.labels <= node.labels:
        return "LABELS"
    if node.memory_bytes < need.memory_bytes:
        return "MEMORY"
    if len(node.gpus) < need.gpus:
        return "GPUS"
    return "" if node.slots else "NO_FREE_SLOT"


class Room:
    """Free slots and GPUs by node, and the attempts whose end will free more."""

    def __init__(self, nodes: Iterable[Node], running: Iterable[Running]) -> None:
        self.nodes = {node.node_id: node for node in nodes}
        self.left = {node.node_id: _Left(node.slots, node.gpus) for node in self.nodes.values()}
        self.vacancies: dict[str, list[Vacancy]] = defaultdict(list)
        self.lasting: dict[str, list[Running]] = defaultdict(list)
        self.kept: dict[str, list[tuple[str, int]]] = defaultdict(list)  # by node: for which job, GPUs
        for attempt in running:
            for node_id, gpus in attempt.gpus.items():
                if (left := self.left.get(node_id)) is not None:
                    left.slots -= 1
                    left.gpus = tuple(gpu for gpu in left.gpus if gpu not in gpus)
                    if attempt.ending:
                        self.vacancies[node_id].append(Vacancy(1, len(gpus), attempt.held_for))
                    else:
                        self.lasting[node_id].append(attempt)
        self._makes: dict[Node, _Make] = {}
        for node in sorted(self.nodes.values(), key=lambda node: node.node_id):
            make = self._make(node)
            make.nodes.append(node)
            make.shelf.setdefault(self.left[node.node_id].filling, []).append(node.node_id)

    def _make(self, node: Node) -> "_Make":
        key = replace(node, node_id="", gpus=tuple(range(len(node.gpus))), slots=min(node.slots, 1))
        return self._makes.setdefault(key, _Make(key))

    def rules(self, need: Need) -> Counter[str]:
        """Counts the nodes by the rule that keeps the job off them when they are idle; empty: none does."""
        rules: Counter[str] = Counter()
        if need.node:
            node = self.nodes.get(need.node)
            rules["OTHER_NODE"] = len(self.nodes) - (node is not None)
            if node is not None:
                rules[misfit(need, node) or node.closed] += 1
            return rules
        for make in self._makes.values():
            rules[misfit(need, make.kind) or make.kind.closed] += len(make.nodes)
        return rules

    def open(self, need: Need) -> Iterator[Node]:
        """Yields the nodes that take jobs and could take this one if they were empty."""
        if need.node:
            node = self.nodes.get(need.node)
            if node is not None and not node.closed and not misfit(need, node):
                yield node
            return
        for make in self._makes.values():
            if not make.kind.closed and not misfit(need, make.kind):
                yield from make.nodes

    def fits(self, need: Need, node_id: str) -> bool:
        """Whether a node can take the job now."""
        node, left = self.nodes.get(node_id), self.left.get(node_id)
        if node is None or left is None or node.closed or misfit(need, node):
            return False
        return left.slots >= 1 and len(left.gpus) >= need.gpus

    def is_kept(self, need: Need, node_id: str) -> bool:
        """Whether a node could take the job now if nothing on it were kept for others."""
        node = self.nodes[node_id]
        if node.closed or misfit(need, node):
            return False
        left, kept = self.left[node_id], self.kept.get(node_id, ())
        num_gpus = len(left.gpus) + sum(gpus for _, gpus in kept)
        return left.slots + len(kept) >= 1 and num_gpus >= need.gpus

    def fitting(self, need: Need) -> Iterator[str]:
        """Yields the nodes that can take the job now, fullest first, to keep gaps large."""
        if need.node:
            if self.fits(need, need.node):
                yield need.node
            return
        for _, names in sorted(self._shelves(need), key=lambda pair: (pair[0], pair[1][0])):
            yield from names

    def has_slot(self, need: Need) -> bool:
        """Whether a node that could take the job has a free slot, whatever GPUs it has left."""
        if need.node:
            return self.left[need.node].slots >= 1
        return any(True for _ in self._shelves(need, gpus=0))

    def _shelves(self, need: Need, gpus: int | None = None) -> Iterator[tuple[tuple[int, int], list[str]]]:
        wanted = need.gpus if gpus is None else gpus
        for make in self._makes.values():
            if make.kind.closed or misfit(need, make.kind):
                continue
            for filling, names in make.shelf.items():
                if names and filling[0] >= 1 and filling[1] >= wanted:
                    yield filling, names

    def choose(self, need: Need, prefer: str, avoid: frozenset[str]) -> tuple[tuple[str, ...], int]:
        """Returns the nodes for a job: all it needs or none, and how many fit.

        `prefer` comes first if it fits, those of `avoid` only where no others do.
        """
        found = [prefer] if prefer and prefer not in avoid and self.fits(need, prefer) else []
        spare = []
        for node_id in self.fitting(need):
            if len(found) == need.num_nodes:
                break
            if node_id in avoid:
                spare.append(node_id)
            elif node_id != prefer or prefer not in found:
                found.append(node_id)
        found += spare[: need.num_nodes - len(found)]
        return (tuple(found), len(found)) if len(found) == need.num_nodes else ((), len(found))

    def take(self, need: Need, node_id: str, holder: str = "") -> tuple[int, ...]:
        """Takes a slot and GPUs of a node, as far as they are there; returns the GPUs."""
        left, node = self.left[node_id], self.nodes[node_id]
        before, given, had_slot = left.filling, left.gpus[: need.gpus], left.slots > 0
        left.slots, left.gpus = left.slots - had_slot, left.gpus[need.gpus :]
        if holder and had_slot:
            self.kept[node_id].append((holder, len(given)))
        shelf = self._make(node).shelf
        names = shelf[before]
        del names[bisect_left(names, node_id)]
        insort(shelf.setdefault(left.filling, []), node_id)
        return given

    def missing(self, need: Need, node_id: str, vacancies: Iterable[Vacancy] = ()) -> tuple[int, int]:
        """Returns (GPUs, slots) a node lacks to take the job, once the vacancies are there."""
        left = self.left[node_id]
        slots, gpus = left.slots, len(left.gpus)
        for vacancy in vacancies:
            slots, gpus = slots + vacancy.slots, gpus + vacancy.gpus
        return max(need.gpus - gpus, 0), max(1 - slots, 0)

    def hold(self, need: Need, node_id: str, vacancies: Iterable[Vacancy], holder: str) -> None:
        """Keeps room for a job: what is free now, and for the rest vacancies of the node."""
        lacking_gpus, lacking_slots = self.missing(need, node_id)
        slots, gpus = -lacking_slots, -lacking_gpus
        for vacancy in vacancies:
            if vacancy in self.vacancies[node_id]:
                self.vacancies[node_id].remove(vacancy)
            slots, gpus = slots + vacancy.slots, gpus + vacancy.gpus
        if slots > 0 or gpus > 0:
            self.vacancies[node_id].append(Vacancy(max(slots, 0), max(gpus, 0)))
        self.take(need, node_id, holder)

    def dismiss(self, attempt: Running, holder: str) -> None:
        """Turns an attempt into vacancies: it is told to end."""
        for node_id, gpus in attempt.gpus.items():
            self.lasting[node_id].remove(attempt)
            self.vacancies[node_id].append(Vacancy(1, len(gpus), holder))
