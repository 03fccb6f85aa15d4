"""Who gives way to whom: the fewest, lowest, youngest; never an equal; and never for nothing."""

from hypothesis import given, settings

from tests.jobs.fleets import NOW, Fleet, fleets, job, node, placed, reasons, runs
from tunesmith_jobs.needs import Quota
from tunesmith_jobs.placement import Decision, decide
from tunesmith_jobs.room import Room, Running, Vacancy


def victims(decision: Decision) -> dict[str, list[str]]:
    return {p.job.job_id: [victim.job_id for victim in p.victims] for p in decision.preemptions}


def test_the_lowest_priority_gives_way_and_of_those_the_one_with_the_least_done() -> None:
    nodes = [node("n1"), node("n2"), node("n3")]
    busy = [
        runs("r1", "n1", priority=1),
        runs("r2", "n2", trained_seconds=90.0),
        runs("r3", "n3", trained_seconds=30.0),
    ]
    decision = decide([job("h", priority=5)], nodes, busy, {}, NOW)
    assert victims(decision) == {"h": ["r3"]}
    assert reasons(decision) == {"h": "ROOM_PROMISED"}


def test_equals_and_betters_never_give_way() -> None:
    busy = [runs("r1", "n1", priority=5), runs("r2", "n2", priority=6)]
    decision = decide([job("h", priority=5)], [node("n1"), node("n2")], busy, {}, NOW)
    assert not decision.preemptions
    assert reasons(decision) == {"h": "NO_FREE_SLOT"}


def test_an_equal_is_spared_even_where_a_lower_one_runs_out_of_reach() -> None:
    nodes = [node("n1", zone="a"), node("n2")]
    busy = [runs("equal", "n1", priority=5), runs("lower", "n2")]
    assert not decide([job("h", priority=5, labels={"zone": "a"})], nodes, busy, {}, NOW).preemptions


def test_nobody_gives_way_while_there_is_room_elsewhere() -> None:
    decision = decide([job("h", priority=5)], [node("n1"), node("n2")], [runs("r1", "n1")], {}, NOW)
    assert placed(decision) == {"h": ("n2",)}
    assert not decision.preemptions


def test_nobody_gives_way_where_the_whole_need_is_not_met() -> None:
    busy = [runs("r1", "n", (0, 1), priority=9), runs("r2", "n", (2, 3))]
    decision = decide([job("h", priority=5, gpus=4)], [node("n", slots=4, gpus=4)], busy, {}, NOW)
    assert not decision.preemptions


def test_as_few_as_possible_give_way() -> None:
    busy = [runs("r1", "n", (0,)), runs("r2", "n", (1,)), runs("r3", "n", (2, 3), trained_seconds=99.0)]
    nodes = [node("n", slots=4, gpus=4)]
    assert victims(decide([job("h", priority=5, gpus=2)], nodes, busy, {}, NOW)) == {"h": ["r3"]}
    found = victims(decide([job("h", priority=5, gpus=3)], nodes, busy, {}, NOW))["h"]
    assert len(found) == 2
    assert "r3" in found


def test_nobody_gives_way_to_what_its_quota_blocks() -> None:
    busy = [runs("r1", "n", project="other")]
    waiting = [job("h", priority=5, project="a"), job("i", priority=4, project="a")]
    quotas = {"a": Quota(max_running_jobs=1)}
    both = decide(waiting, [node("n", slots=1), node("m", slots=1)], [*busy, runs("r2", "m")], quotas, NOW)
    assert victims(both) == {"h": ["r2"]} or victims(both) == {"h": ["r1"]}
    assert reasons(both)["i"] == "QUOTA"


def test_room_that_is_being_vacated_is_waited_for_and_kept() -> None:
    """No ping-pong: while the victim stops, nobody else gets the room, and nobody else is stopped."""
    nodes = [node("n1"), node("n2")]
    busy = [runs("r1", "n1", ending=True, held_for="h"), runs("r2", "n2")]
    waiting = [job("h", priority=5), job("low")]
    decision = decide(waiting, nodes, busy, {}, NOW)
    assert not decision.preemptions
    assert reasons(decision) == {"h": "ROOM_PROMISED", "low": "NO_FREE_SLOT"}
    # The victim has ended and waits again: its room goes to the one it gave way to.
    decision = decide([*waiting, job("a-r1")], nodes, busy[1:], {}, NOW)
    assert placed(decision) == {"h": ("n1",)}
    assert not decision.preemptions


def test_two_that_need_room_do_not_count_on_the_same() -> None:
    nodes = [node("n1"), node("n2")]
    busy = [runs("r1", "n1"), runs("r2", "n2")]
    waiting = [job("h1", priority=5), job("h2", priority=5)]
    decision = decide(waiting, nodes, busy, {}, NOW)
    assert sorted(name for names in victims(decision).values() for name in names) == ["r1", "r2"]
    stopping = [runs("r1", "n1", ending=True, held_for="h1"), runs("r2", "n2", ending=True, held_for="h2")]
    assert not decide(waiting, nodes, stopping, {}, NOW).preemptions


def test_what_is_promised_to_one_is_not_promised_to_another_who_could_go_elsewhere() -> None:
    """h1 could use both nodes, h2 only n1: each keeps what is vacated for it."""
    nodes = [node("n1", zone="a"), node("n2")]
    stopping = [runs("r1", "n1", ending=True, held_for="h2"), runs("r2", "n2", ending=True, held_for="h1")]
    waiting = [job("h1", priority=5), job("h2", priority=5, labels={"zone": "a"})]
    decision = decide(waiting, nodes, stopping, {}, NOW)
    assert reasons(decision) == {"h1": "ROOM_PROMISED", "h2": "ROOM_PROMISED"}


def test_what_is_promised_to_one_goes_to_nobody_of_its_rank_but_to_a_higher_one() -> None:
    stopping = [runs("r1", "n1", ending=True, held_for="h2")]
    waiting = [job("h1", priority=5), job("h2", priority=5)]
    assert reasons(decide(waiting, [node("n1")], stopping, {}, NOW)) == {
        "h1": "NO_FREE_SLOT",
        "h2": "ROOM_PROMISED",
    }
    assert reasons(decide([*waiting, job("top", priority=6)], [node("n1")], stopping, {}, NOW)) == {
        "top": "ROOM_PROMISED",
        "h1": "NO_FREE_SLOT",
        "h2": "NO_FREE_SLOT",
    }


def test_a_gang_gets_its_room_from_free_nodes_and_victims_together() -> None:
    nodes = [node("n1"), node("n2"), node("n3")]
    busy = [runs("r2", "n2"), runs("r3", "n3", priority=1)]
    decision = decide([job("h", priority=5, num_nodes=2), job("low")], nodes, busy, {}, NOW)
    assert victims(decision) == {"h": ["r2"]}
    assert reasons(decision)["low"] == "ROOM_HELD", "the free node is kept for the gang"


@settings(max_examples=250, deadline=None)
@given(fleets())
def test_giving_way_is_lawful_and_enough(
    fleet: Fleet,
) -> None:
    _, nodes, running, _ = fleet
    decision = decide(*fleet, NOW)
    stopped: set[str] = set()
    for preemption in decision.preemptions:
        assert preemption.victims
        for victim in preemption.victims:
            assert victim.priority < preemption.job.priority
            assert not victim.ending
            assert victim.job_id not in stopped, "nobody gives way twice"
            stopped.add(victim.job_id)
    if len(decision.preemptions) == 1 and not any(r.ending or r.move_to for r in running):
        (preemption,) = decision.preemptions
        taken = [
            Running(p.job.job_id, "", 0, dict(zip(p.nodes, p.gpus, strict=True)))
            for p in decision.placements
            if p.job.priority >= preemption.job.priority
        ]

        def fits_without(gone: set[str]) -> bool:
            room = Room(nodes, [*(r for r in running if r.job_id not in gone), *taken])
            return bool(room.choose(preemption.job.need, "", frozenset())[0])

        assert fits_without(stopped)
        if preemption.job.need.num_nodes == 1:
            for spared in stopped:
                assert not fits_without(stopped - {spared}), "one of them need not have been stopped"


def test_what_is_left_of_a_vacancy_is_there_for_others() -> None:
    room = Room([node("n", slots=1, gpus=4)], [runs("r", "n", (0, 1, 2, 3), ending=True)])
    one = job("a", gpus=1).need
    room.hold(one, "n", room.vacancies["n"][:], "a")
    assert room.vacancies["n"] == [Vacancy(0, 3)]
