"""Fleets to decide upon, as the scheduler's pure part sees them: built by hand, and drawn at random."""

from hypothesis import strategies as st

from tunesmith_jobs.needs import Need, Quota, Waiting
from tunesmith_jobs.placement import PATIENCE_SECONDS, Decision
from tunesmith_jobs.room import Node, Running

Fleet = tuple[list[Waiting], list[Node], list[Running], dict[str, Quota]]
NOW = 1_000_000.0


def job(name: str, **how: object) -> Waiting:
    """A job that has just been queued; what is no field of it is a field of its need."""
    own = {key: how.pop(key) for key in list(how) if key in Waiting.__dataclass_fields__}
    if "labels" in how:
        how["labels"] = frozenset(dict(how["labels"]).items())  # type: ignore[call-overload]
    return Waiting(name, **{"since": NOW, "need": Need(**how), **own})  # type: ignore[arg-type]


def node(
    name: str, slots: int = 1, gpus: int = 0, closed: str = "", memory: int = 1 << 40, **labels: str
) -> Node:
    return Node(name, slots, tuple(range(gpus)), memory, frozenset(labels.items()), closed)


def runs(name: str, at: str, gpus: tuple[int, ...] = (), **how: object) -> Running:
    return Running(name, **{"project": "default", "priority": 0, "gpus": {at: gpus}, **how})  # type: ignore[arg-type]


def placed(decision: Decision) -> dict[str, tuple[str, ...]]:
    return {placement.job.job_id: placement.nodes for placement in decision.placements}


def reasons(decision: Decision) -> dict[str, str]:
    return {block.job.job_id: block.reason for block in decision.blocked}


_LABELS = st.sampled_from([{}, {"z": "1"}, {"z": "2"}])


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Nodes, jobs that run on them without overlapping, jobs that wait, quotas."""
    closed = st.sampled_from(["", "", "NODE_CORDONED"])
    nodes = [
        node(f"n{i}", draw(st.integers(0, 3)), draw(st.integers(0, 4)), draw(closed),
             draw(st.integers(1, 3)), **draw(_LABELS))
        for i in range(draw(st.integers(0, 6)))
    ]  # fmt: skip
    projects, priorities = st.sampled_from("pqr"), st.integers(-1, 2)
    running = []
    for each in nodes:
        gpus = list(each.gpus)
        for slot in range(draw(st.integers(0, each.slots))):
            taken = tuple(gpus.pop() for _ in range(draw(st.integers(0, len(gpus)))))
            ending = draw(st.booleans())
            running.append(
                Running(
                    f"r-{each.node_id}-{slot}", draw(projects), draw(priorities),
                    {each.node_id: taken}, ending,
                    held_for=draw(st.sampled_from(["", "w0", "w3"])) if ending else "",
                    move_to=draw(st.sampled_from(["", "", "", "n0", "n9"])),
                    trained_seconds=draw(st.integers(0, 3)),
                )
            )  # fmt: skip
    names = st.sampled_from(["", "n0", "n1", "n2"])
    waiting = [
        Waiting(
            f"w{i}", draw(projects),
            Need(draw(st.sampled_from([1, 1, 1, 2, 3])), draw(st.integers(0, 4)), draw(st.integers(0, 3)),
                 frozenset(draw(_LABELS).items()), draw(st.sampled_from(["", "", "", "n1"]))),
            draw(priorities), NOW - draw(st.sampled_from([0, 2 * PATIENCE_SECONDS])), draw(names),
            draw(st.sampled_from(["", "", "", "n0"])), frozenset({draw(names)}),
        )
        for i in range(draw(st.integers(0, 10)))
    ]  # fmt: skip
    limit = st.one_of(st.none(), st.integers(1, 4))
    quotas = {name: Quota(draw(limit), draw(limit), draw(st.sampled_from([1.0, 3.0]))) for name in "pq"}
    return waiting, nodes, running, quotas
