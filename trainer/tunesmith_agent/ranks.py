"""Starts the ranks of an attempt, and finds those an earlier agent started."""

import logging

from tunesmith.api.nodes.v1 import events_pb2
from tunesmith_agent import process
from tunesmith_agent.folder import Notes, RunFolder, local_ranks
from tunesmith_agent.process import Group, Standby, TrainerProcess, start_ticks

log = logging.getLogger(__name__)


def adopt(notes: Notes) -> Group:
    """Returns the processes our notes name, those that are gone too."""
    named = [[notes.pid, notes.start_ticks], *notes.peers] if notes.pid else []
    if any(start_ticks(pid) == ticks for pid, ticks in named):
        log.info("adopted a running trainer", extra={"job": notes.job, "pid": notes.pid})
    return Group([TrainerProcess(pid, ticks) for pid, ticks in named])


def start(folder: RunFolder, notes: Notes, assign: events_pb2.AssignAttempt, standby: Standby) -> Group:
    """Starts every rank of this node. All are named in our notes before the first begins: an agent that dies
    here leaves no trainer that nobody knows."""
    numbers = local_ranks(assign)
    waiting = None if assign.gpus else standby.take()
    ranks = [
        waiting if waiting is not None and place == 0 else _launch(folder, assign, place, rank)
        for place, rank in enumerate(numbers)
    ]
    group = _name(folder, notes, ranks)
    if not ranks[0].begin(folder.path, numbers[0]):  # the standby died while it waited
        ranks[0] = _launch(folder, assign, 0, numbers[0])
        group = _name(folder, notes, ranks)
        ranks[0].begin(folder.path, numbers[0])
    for place in range(1, len(ranks)):
        ranks[place].begin(folder.path, numbers[place])
    return group


def _name(folder: RunFolder, notes: Notes, ranks: list[TrainerProcess]) -> Group:
    notes.pid, notes.start_ticks = ranks[0].pid, ranks[0].ticks
    notes.peers = [[rank.pid, rank.ticks] for rank in ranks[1:]]
    notes.started = True
    folder.save(notes)
    return Group(ranks)


def _launch(folder: RunFolder, assign: events_pb2.AssignAttempt, place: int, rank: int) -> TrainerProcess:
    share = len(assign.gpus) // len(local_ranks(assign))  # an equal part of the node's GPUs each
    return process.launch(folder.path, list(assign.gpus[place * share : (place + 1) * share]), rank)
