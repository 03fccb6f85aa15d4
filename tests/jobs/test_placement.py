"""Decisions of a pass: a pure function of what waits, what runs and what is free."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.jobs.fleets import NOW, Fleet, fleets, job, node, placed, reasons, runs
from tunesmith_jobs.needs import Need, Quota, Usage, Waiting, over_quota
from tunesmith_jobs.placement import PATIENCE_SECONDS, decide
from tunesmith_jobs.room import Node, Room, Running


def test_jobs_are_placed_by_age_until_slots_run_out() -> None:
    decision = decide([job("c"), job("a"), job("b")], [node("n1"), node("n2")], [], {}, NOW)
    assert list(placed(decision)) == ["a", "b"]
    assert reasons(decision) == {"c": "NO_FREE_SLOT"}


def test_higher_priority_goes_first_whatever_its_age_and_project() -> None:
    waiting = [job("a"), job("b", priority=-5), job("z", priority=7, project="other")]
    assert list(placed(decide(waiting, [node("n")], [], {}, NOW))) == ["z"]


def test_gpus_are_given_once() -> None:
    decision = decide([job("a", gpus=2), job("b", gpus=1)], [node("n", slots=4, gpus=2)], [], {}, NOW)
    assert decision.placements[0].gpus == ((0, 1),)
    assert reasons(decision) == {"b": "NO_FREE_GPU"}


def test_a_job_over_several_processes_takes_one_slot() -> None:
    decision = decide([job("a", gpus=4), job("b", gpus=4)], [node("n", slots=2, gpus=8)], [], {}, NOW)
    assert len(decision.placements) == 2


def test_a_job_goes_where_its_labels_point() -> None:
    nodes = [node("x"), node("y", gpu="a100")]
    assert placed(decide([job("a", labels={"gpu": "a100"})], nodes, [], {}, NOW)) == {"a": ("y",)}


def test_a_gang_is_placed_whole_or_not_at_all() -> None:
    decision = decide([job("big", num_nodes=3), job("small")], [node("n1"), node("n2"), node("n3", slots=0)],
                      [], {}, NOW)  # fmt: skip
    assert list(placed(decision)) == ["small"]
    assert reasons(decision) == {"big": "UNSATISFIABLE"}
    nodes, busy = [node("n1"), node("n2"), node("n3")], [runs("r", "n3")]
    decision = decide([job("big", num_nodes=3), job("small")], nodes, busy, {}, NOW)
    assert list(placed(decision)) == ["small"]
    assert "2 of 3" in decision.blocked[0].message
    assert placed(decide([job("big", num_nodes=3)], nodes, [], {}, NOW)) == {"big": ("n1", "n2", "n3")}


def test_the_reason_names_the_rule_of_the_node_nearest_to_fitting() -> None:
    def reason(waiting: Waiting, *nodes: Node) -> tuple[str, str]:
        (blocked,) = decide([waiting], nodes, [], {}, NOW).blocked
        return blocked.reason, blocked.message

    assert reason(job("a"))[0] == "NO_NODES"
    assert reason(job("a", memory_bytes=1 << 50), node("n")) == (
        "UNSATISFIABLE",
        "no node of the fleet could take it, busy or not: "
        "no node has the memory of spec.resources.memory_bytes",
    )
    assert "node_labels" in reason(job("a", labels={"x": "y"}), node("n"))[1]
    assert "spec.resources.node is not" in reason(job("a", node="gone"), node("n"))[1]
    assert "gpus_per_node" in reason(job("a", gpus=1), node("n"))[1]
    assert reason(job("a"), node("n", closed="NODE_NOT_READY"))[0] == "NODE_NOT_READY"
    assert reason(job("a"), node("m", closed="NODE_NOT_READY"), node("n", closed="NODE_CORDONED"))[0] == (
        "NODE_CORDONED"
    )


def test_projects_of_equal_priority_get_equal_shares() -> None:
    waiting = [job(f"a{i}", project="a") for i in range(6)] + [job(f"b{i}", project="b") for i in range(6)]
    decision = decide(waiting, [node("n", slots=6)], [], {}, NOW)
    assert sorted(placed(decision)) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert sorted(placed(decide(waiting, [node("n", slots=6)], [], {"b": Quota(weight=2)}, NOW))) == [
        "a0", "a1", "b0", "b1", "b2", "b3",
    ]  # fmt: skip
    busy = [runs("r1", "n", project="a"), runs("r2", "n", project="a")]
    assert sorted(placed(decide(waiting, [node("n", slots=6)], busy, {}, NOW))) == ["a0", "b0", "b1", "b2"]


def test_the_share_that_counts_is_that_of_the_scarcer_thing() -> None:
    """a has half of the GPUs in one job, b two of ten slots: a slot goes to b."""
    nodes = [node("n", slots=3, gpus=0), node("g", slots=7, gpus=8)]
    busy = [
        runs("r1", "g", (0, 1, 2, 3), project="a"),
        runs("r2", "n", project="b"),
        runs("r3", "n", project="b"),
    ]
    waiting = [job("a", project="a", node="n"), job("b", project="b", node="n")]
    assert list(placed(decide(waiting, nodes, busy, {}, NOW))) == ["b"]


def test_a_quota_holds_a_project_back_and_nobody_else() -> None:
    waiting = [job("a1", project="a"), job("a2", project="a"), job("b1", project="b")]
    decision = decide(waiting, [node("n", slots=9)], [], {"a": Quota(max_running_jobs=1)}, NOW)
    assert sorted(placed(decision)) == ["a1", "b1"]
    assert reasons(decision) == {"a2": "QUOTA"}
    waiting = [job("a1", project="a", gpus=3), job("a2", project="a", gpus=2), job("a3", project="a")]
    decision = decide(waiting, [node("n", slots=9, gpus=8)], [], {"a": Quota(max_gpus=4)}, NOW)
    assert sorted(placed(decision)) == ["a1", "a3"], "a job without GPUs needs no quota of GPUs"


def test_what_waits_long_for_its_quota_is_not_passed_by_small_jobs_of_its_project() -> None:
    quotas, busy = {"a": Quota(max_gpus=4)}, [runs("r", "n", (0,), project="a")]
    nodes = [node("n", slots=9, gpus=8)]
    big, small = job("a1", project="a", gpus=4), job("a2", project="a", gpus=1)
    assert list(placed(decide([big, small], nodes, busy, quotas, NOW))) == ["a2"]
    waited = replace(big, since=NOW - PATIENCE_SECONDS)
    assert not placed(decide([waited, small], nodes, busy, quotas, NOW))
    impossible = replace(waited, need=Need(gpus=5))
    assert list(placed(decide([impossible, small], nodes, busy, quotas, NOW))) == ["a2"]


def test_a_job_goes_back_to_the_node_with_its_snapshots_unless_it_failed_there() -> None:
    nodes = [node("n1"), node("n2"), node("n3")]
    back = job("a", last_node="n2")
    assert placed(decide([back], nodes, [], {}, NOW)) == {"a": ("n2",)}
    assert placed(decide([back], nodes, [runs("r", "n2")], {}, NOW)) == {"a": ("n1",)}
    burnt = replace(back, avoid=frozenset({"n1", "n2"}))
    assert placed(decide([burnt], nodes, [], {}, NOW)) == {"a": ("n3",)}
    assert placed(decide([burnt], nodes[:2], [], {}, NOW)) == {"a": ("n1",)}, "rather there than nowhere"


def test_a_moving_job_goes_to_its_target_and_nowhere_else_while_that_takes_jobs() -> None:
    mover = job("a", move_to="n2", last_node="n1")
    assert placed(decide([mover], [node("n1"), node("n2")], [], {}, NOW)) == {"a": ("n2",)}
    full = decide([mover], [node("n1"), node("n2")], [runs("r", "n2")], {}, NOW)
    assert reasons(full) == {"a": "NO_FREE_SLOT"}
    assert placed(decide([mover], [node("n1"), node("n2", closed="NODE_NOT_READY")], [], {}, NOW)) == {
        "a": ("n1",)
    }
    assert placed(decide([mover], [node("n1")], [], {}, NOW)) == {"a": ("n1",)}


def test_the_target_of_a_move_is_kept_for_it_even_from_higher_priorities() -> None:
    nodes = [node("n1", gpus=1), node("n2", gpus=1)]
    moving = runs("m", "n1", (0,), move_to="n2", priority=9)
    decision = decide([job("a", priority=5)], nodes, [moving], {}, NOW)
    assert reasons(decision) == {"a": "ROOM_HELD"}
    left = job("m", move_to="n2", gpus=1)
    assert placed(decide([left, job("a", priority=5, gpus=1)], nodes, [], {}, NOW)) == {
        "m": ("n2",),
        "a": ("n1",),
    }


def test_a_big_job_is_not_starved_by_small_ones() -> None:
    """Small jobs come for ever, each for some passes. The gang starts all the same, once it has waited."""
    nodes = [node(f"n{i}", slots=2) for i in range(4)]
    gang = job("a-gang", num_nodes=4, project="big")

    def passes(patient: bool) -> int | None:
        running = [runs(f"r{i}-{k}", f"n{i}", project="small") for i in range(4) for k in range(2)]
        for number in range(60):
            now = NOW + number * (PATIENCE_SECONDS / 10 if patient else 0)
            # One running job ends a pass; a new small one is always there.
            running.pop(0)
            waiting = [gang, *(job(f"s{number}-{k}", project="small", since=now) for k in range(3))]
            decision = decide(waiting, nodes, running, {"small": Quota(weight=100)}, now)
            if "a-gang" in placed(decision):
                return number
            running += [runs(p.job.job_id, p.nodes[0], project="small") for p in decision.placements]
        return None

    assert passes(patient=False) is None, "without the rule it would wait for ever"
    assert passes(patient=True) is not None


def test_room_is_kept_for_one_big_job_only_and_the_rest_is_used() -> None:
    nodes = [node("n1", slots=3, gpus=4), node("n2", slots=3, gpus=4), node("n3", slots=3, gpus=4)]
    busy = [runs("r1", "n1", (0, 1)), runs("r2", "n2", (0, 1, 2)), runs("r3", "n3", (0, 1, 2))]
    long_ago = NOW - PATIENCE_SECONDS
    waiting = [
        job("a", gpus=4, since=long_ago),
        job("b", gpus=4, since=long_ago),
        job("s1", gpus=1),
        job("s2", gpus=1),
    ]
    decision = decide([*waiting, job("s3", gpus=1)], nodes, busy, {}, NOW)
    assert placed(decision) == {"s1": ("n2",), "s2": ("n3",)}
    assert reasons(decision) == {"a": "NO_FREE_GPU", "b": "NO_FREE_GPU", "s3": "ROOM_HELD"}


@settings(max_examples=200, deadline=None)
@given(fleets())
def test_no_slot_no_gpu_is_given_twice_and_gangs_are_whole(
    fleet: Fleet,
) -> None:
    waiting, nodes, running, _ = fleet
    decision = decide(*fleet, NOW)
    found = [p.job.job_id for p in decision.placements] + [b.job.job_id for b in decision.blocked]
    assert sorted(found) == sorted(j.job_id for j in waiting), "each job is decided upon once"
    slots = {n.node_id: n.slots - sum(n.node_id in r.gpus for r in running) for n in nodes}
    gpus = {n.node_id: {*n.gpus} - {g for r in running for g in r.gpus.get(n.node_id, ())} for n in nodes}
    by_name = {n.node_id: n for n in nodes}
    for placement in decision.placements:
        need = placement.job.need
        assert len(set(placement.nodes)) == len(placement.nodes) == need.num_nodes
        for name, taken in zip(placement.nodes, placement.gpus, strict=True):
            each = by_name[name]
            assert not each.closed
            assert need.labels <= each.labels
            assert need.memory_bytes <= each.memory_bytes
            assert need.node in ("", name)
            assert len(taken) == need.gpus
            assert set(taken) <= gpus[name], "a GPU was given twice"
            gpus[name] -= set(taken)
            slots[name] -= 1
            assert slots[name] >= 0, "a slot was given twice"


@settings(max_examples=200, deadline=None)
@given(fleets())
def test_quotas_are_kept(fleet: Fleet) -> None:
    _, _, running, quotas = fleet
    usage: dict[str, Usage] = {name: Usage() for name in "pqr"}
    for attempt in running:
        usage[attempt.project].add(len(attempt.gpus), attempt.num_gpus)
    decision = decide(*fleet, NOW)
    for placement in decision.placements:
        quota = quotas.get(placement.job.project, Quota())
        if not placement.job.move_to:  # a mover was counted when it started
            assert not over_quota(quota, usage[placement.job.project], placement.job.need)
        usage[placement.job.project].add(placement.job.need.num_nodes, placement.job.need.num_gpus)
    for preemption in decision.preemptions:
        quota = quotas.get(preemption.job.project, Quota())
        before = Usage()
        for attempt in running:
            if attempt.project == preemption.job.project:
                before.add(len(attempt.gpus), attempt.num_gpus)
        assert not over_quota(quota, before, preemption.job.need), "nobody gives way to what its quota blocks"


@settings(max_examples=200, deadline=None)
@given(fleets())
def test_no_job_is_passed_by_one_of_lower_priority_whose_room_it_could_have(
    fleet: Fleet,
) -> None:
    _, nodes, running, _ = fleet
    decision = decide(*fleet, NOW)
    for block in decision.blocked:
        if block.reason == "QUOTA" or block.job.move_to:
            continue
        kept = [p for p in decision.placements if p.job.priority >= block.job.priority or p.job.move_to]
        held = [
            Running(p.job.job_id, p.job.project, 0, dict(zip(p.nodes, p.gpus, strict=True))) for p in kept
        ]
        room = Room(nodes, [*running, *held])
        for attempt in running:  # what is kept for moves is nobody's
            if attempt.move_to in room.left:
                room.take(Need(gpus=attempt.num_gpus), attempt.move_to, attempt.job_id)
        if not any(reason == "ROOM_PROMISED" for reason in reasons(decision).values()):
            found, _ = room.choose(block.job.need, "", frozenset())
            ahead = [b for b in decision.blocked if b.job.priority >= block.job.priority and b is not block]
            overdue = any(NOW - b.job.since >= PATIENCE_SECONDS for b in ahead)
            assert not found or overdue, "it fits where a lower priority was placed"


@settings(max_examples=200, deadline=None)
@given(fleets(), st.randoms())
def test_the_order_of_what_is_given_does_not_matter(fleet: Fleet, random: object) -> None:
    waiting, nodes, running, quotas = fleet
    first = decide(waiting, nodes, running, quotas, NOW)
    for items in (waiting, nodes, running):
        random.shuffle(items)  # type: ignore[attr-defined]
    assert decide(waiting, nodes, running, quotas, NOW) == first
