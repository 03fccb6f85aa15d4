"""Starts the ranks of an attempt, and finds those an earlier agent started."""

import logging

from tunesmith.api.nodes.v1 import events_pb2
from tunesmith_agent import process
from tunesmith_agent.folder import Notes, RunFolder, local_ranks
from tunesmith_agent.process import ForkServer, Group, TrainerProcess, start_ticks

log = logging.getLogger(__name__)


def adopt(notes: Notes) -> Group:
    """Returns the processes our notes name, those that are gone too."""
    named = [[notes.pid, notes.start_ticks], *notes.peers] if notes.pid else []
    if any(start_ticks(pid) == ticks for pid, ticks in named):
        log.info("adopted a running trainer", extra={"job": notes.job, "pid": notes.pid})
    return Group([TrainerProcess(pid, ticks) for pid, ticks in named])


async def start(
    folder: RunFolder, notes: Notes, assign: events_pb2.AssignAttempt, server: ForkServer
) -> Group:
    """Starts every rank of this node. All are named in our notes before the first begins: an agent that dies
    here leaves no trainer that nobody knows."""
    numbers = local_ranks(assign)
    # CUDA must see its devices before anything of it is touched: not in a process that others come from.
    forked = [None if assign.gpus else await server.fork(lambda: _ends(notes)) for _ in numbers]
    ranks = [
        waiting if waiting is not None else _launch(folder, assign, place, numbers[place])
        for place, waiting in enumerate(forked)
    ]
    group = _name(folder, notes, ranks)
    for place, rank in enumerate(numbers):
        if not ranks[place].begin(folder.path, rank):  # it died while it waited
            ranks[place] = _launch(folder, assign, place, rank)
            group = _name(folder, notes, ranks)
            ranks[place].begin(folder.path, rank)
    return group


def _ends(notes: Notes) -> bool:
    return notes.told_to_stop or notes.told_to_kill


def _name(folder: RunFolder, notes: Notes, ranks: list[TrainerProcess]) -> Group:
    notes.pid, notes.start_ticks = ranks[0].pid, ranks[0].ticks
    notes.peers = [[rank.pid, rank.ticks] for rank in ranks[1:]]
    notes.started = True
    folder.save(notes)
    return Group(ranks)


def _launch(folder: RunFolder, assign: events_pb2.AssignAttempt, place: int, rank: int) -> TrainerProcess:
    share = len(assign.gpus) // len(local_ranks(assign))  # an equal part of the node's GPUs each
    return process.launch(folder.path, list(assign.gpus[place * share : (place + 1) * share]), rank)
