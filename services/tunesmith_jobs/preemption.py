"""Which running jobs give way to a waiting one: the fewest, of the lowest priority, with the least done."""

from collections.abc import Callable, Iterable, Sequence

from tunesmith_jobs.needs import Waiting
from tunesmith_jobs.room import Node, Room, Running, Vacancy

Vacancies = Callable[[str], Sequence[Vacancy]]
_Cost = tuple[int, int, float, str]


def victims(room: Room, job: Waiting, vacancies: Vacancies) -> tuple[tuple[str, ...], tuple[Running, ...]]:
    """Returns the nodes a job would get and the jobs that must end for it; nothing if that is not enough.

    `vacancies` gives the room of a node that will be free for this job anyway. No job of equal or higher
    priority is named.
    """
    chosen: list[str] = []
    gone: list[Running] = []
    for _ in range(job.need.num_nodes):
        found = min(_offers(room, job, vacancies, chosen, gone), key=lambda offer: offer[0], default=None)
        if found is None:
            return (), ()
        (*_, node_id), more = found
        chosen.append(str(node_id))
        gone += more
    return tuple(chosen), tuple(gone)


def _offers(
    room: Room, job: Waiting, vacancies: Vacancies, chosen: Sequence[str], gone: Sequence[Running]
) -> Iterable[tuple[_Cost, list[Running]]]:
    for node in room.open(job.need):
        if node.node_id not in chosen:
            found = _of_node(room, job, node, vacancies(node.node_id), gone)
            if found is not None:
                done = sum(attempt.trained_seconds for attempt in found)
                highest = max((attempt.priority for attempt in found), default=-(1 << 31))
                yield (len(found), highest, done, node.node_id), found


def _of_node(
    room: Room, job: Waiting, node: Node, vacancies: Sequence[Vacancy], gone: Sequence[Running]
) -> list[Running] | None:
    """Returns the fewest attempts of a node whose end makes room there, or nothing if none do."""
    name, present = node.node_id, room.lasting.get(node.node_id, ())
    freed = [Vacancy(1, len(attempt.gpus[name])) for attempt in gone if name in attempt.gpus]
    gpus, slots = room.missing(job.need, name, [*vacancies, *freed])
    left = [a for a in present if a.priority < job.priority and a not in gone]
    found: list[Running] = []
    while gpus > 0 or slots > 0:
        if not left:
            return None
        # The largest first is the fewest. What frees more GPUs than are lacking is no better than what frees
        # just those.
        lacking = gpus
        best = min(
            left,
            key=lambda a: (-min(len(a.gpus[name]), lacking), a.priority, a.trained_seconds, a.job_id),
        )
        left.remove(best)
        found.append(best)
        gpus, slots = gpus - len(best.gpus[name]), slots - 1
    return found
