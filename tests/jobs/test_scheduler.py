"""Decisions of the scheduler: a pure function of what waits and what is free."""

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.api.jobs.v1 import spec_pb2
from tunesmith_jobs.scheduler import Free, Waiting, decide


def job(name: str, **resources: object) -> Waiting:
    return Waiting(name, 1, spec_pb2.ResourceSpec(**{"num_nodes": 1, **resources}))  # type: ignore[arg-type]


def node(name: str, slots: int = 1, gpus: int = 0, memory: int = 1 << 40, **labels: str) -> Free:
    return Free(name, slots, tuple(range(gpus)), memory, labels)


def test_jobs_are_placed_in_the_order_given_until_slots_run_out() -> None:
    placed, blocked = decide([job("a"), job("b"), job("c")], [node("n1"), node("n2")])
    assert [p.job.job_id for p in placed] == ["a", "b"]
    assert [(b.job.job_id, b.reason) for b in blocked] == [("c", "NO_FREE_SLOT")]


def test_gpus_are_given_once() -> None:
    placed, blocked = decide(
        [job("a", gpus_per_node=2), job("b", gpus_per_node=1)], [node("n", slots=4, gpus=2)]
    )
    assert placed[0].gpus == ((0, 1),)
    assert blocked[0].reason == "NO_FREE_GPU"


def test_a_job_goes_where_its_labels_point() -> None:
    placed, _ = decide([job("a", node_labels={"gpu": "a100"})], [node("x"), node("y", gpu="a100")])
    assert placed[0].nodes[0].node_id == "y"


def test_a_gang_is_placed_whole_or_not_at_all() -> None:
    placed, blocked = decide([job("big", num_nodes=3), job("small")], [node("n1"), node("n2")])
    assert [p.job.job_id for p in placed] == ["small"]
    assert "2 of 3" in blocked[0].message


def test_the_reason_names_the_rule_of_the_closest_node() -> None:
    reasons = {
        "NO_NODES": decide([job("a")], []),
        "MEMORY": decide([job("a", memory_bytes=1 << 50)], [node("n")]),
        "LABELS": decide([job("a", node_labels={"x": "y"})], [node("n")]),
        "OTHER_NODE": decide([job("a", node="gone")], [node("n")]),
        "NODE_NOT_READY": decide([job("a")], [Free("n", 1, (), 1 << 40, {}, ready=False)]),
    }
    for reason, (placed, blocked) in reasons.items():
        assert not placed
        assert blocked[0].reason == reason


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), max_size=20),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), max_size=8),
)
def test_no_node_is_ever_given_more_than_it_has(
    jobs: list[tuple[int, int]], nodes: list[tuple[int, int]]
) -> None:
    waiting = [job(f"j{i}", gpus_per_node=gpus, num_nodes=num) for i, (gpus, num) in enumerate(jobs)]
    free = {f"n{i}": node(f"n{i}", slots, gpus) for i, (slots, gpus) in enumerate(nodes)}
    placed, blocked = decide(waiting, free.values())
    assert len(placed) + len(blocked) == len(waiting)
    given: dict[str, list[int]] = {}
    for placement in placed:
        assert len({n.node_id for n in placement.nodes}) == placement.job.resources.num_nodes
        for chosen, gpus in zip(placement.nodes, placement.gpus, strict=True):
            assert len(gpus) == placement.job.resources.gpus_per_node
            given.setdefault(chosen.node_id, []).extend(gpus)
    for name, taken in given.items():
        assert len(taken) == len(set(taken)), "a GPU was given twice"
        assert sum(n.node_id == name for p in placed for n in p.nodes) <= free[name].slots
