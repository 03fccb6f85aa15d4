"""Faults of nodes: what their heartbeats tell is shown as conditions, and a grave fault closes the node.

A fault closes its node once. An operator who opens the node again is heeded until the fault comes anew: it
went away in between, or tells of something else.
"""

import asyncio
import logging
from collections.abc import Sequence

from sqlalchemy.orm import Session

from tunesmith.api.nodes.v1 import events_pb2, nodes_pb2
from tunesmith.errors import Unavailable
from tunesmith_jobs.change import ACTOR, drop_condition, save_node, set_condition
from tunesmith_jobs.fleet import CLOSED
from tunesmith_jobs.tables import NodeRow
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus
from tunesmith_kit.clock import Clock
from tunesmith_kit.connection import Message
from tunesmith_kit.db import Database

log = logging.getLogger(__name__)
_PREFIX, _BETWEEN = "Fault/", "; "
_Faults = tuple[tuple[str, str, frozenset[str]], ...]  # condition, what it says, what of it is grave


class FaultMonitor:
    """Hears heartbeats, and writes what changed in the faults of a node."""

    def __init__(self, db: Database, bus: Bus, clock: Clock) -> None:
        self._db, self._bus, self._clock = db, bus, clock
        self._written: dict[str, _Faults] = {}
        self._waiting: dict[str, _Faults] = {}
        self._heard = asyncio.Event()

    async def run(self) -> None:
        """Works until it is cancelled."""
        subscription = await self._bus.subscribe(subjects.any_heartbeat(), self._hear)
        try:
            while True:
                await self._heard.wait()
                self._heard.clear()
                await self._write_all()
        finally:
            await subscription.close()

    async def _hear(self, message: Message) -> None:
        beat = events_pb2.NodeHeartbeat.FromString(message.payload)
        faults = _by_condition(beat.faults)
        # The first heartbeat after a start may end a fault that was written before it.
        if self._written.get(beat.node_id) != faults:
            self._waiting[beat.node_id] = faults
            self._heard.set()

    async def _write_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for node_id, faults in waiting.items():
            try:
                if await self._db.write(lambda s, n=node_id, f=faults: self._write(s, n, f)):  # type: ignore[misc]
                    self._written[node_id] = faults
            except Unavailable as error:  # the next heartbeat tells it again
                log.warning("faults of a node cannot be noted", extra={"error": error.message})

    def _write(self, session: Session, node_id: str, faults: _Faults) -> bool:
        """Writes the faults of a node; False when it has not registered yet."""
        row = session.get(NodeRow, node_id, with_for_update=True)
        if row is None:
            return False
        node, now = nodes_pb2.Node.FromString(row.body), self._clock.now()
        known = {each.type: each.message for each in node.conditions if each.type.startswith(_PREFIX)}
        if known == {kind: words for kind, words, _ in faults}:
            return True
        for kind in known.keys() - {kind for kind, _, _ in faults}:
            drop_condition(node.conditions, kind)
        for kind, words, _ in faults:
            set_condition(node.conditions, kind, kind.split("/")[1], words, True, now)
        new = [(kind, each) for kind, _, grave in faults for each in sorted(grave - _parts(known.get(kind)))]
        if not new or node.state in CLOSED:
            save_node(session, row, node, now)
            return True
        kind, words = new[0]
        log.error("a node is closed", extra={"node": node_id, "fault": kind, "why": words})
        moved = events_pb2.NodeStateChanged(
            from_state=node.state, to_state=nodes_pb2.NODE_STATE_CORDONED, message=words
        )
        node.state = nodes_pb2.NODE_STATE_CORDONED
        set_condition(node.conditions, "Cordoned", kind.split("/")[1], words, True, now)
        save_node(session, row, node, now, "state_changed", moved, ACTOR)
        return True


def _by_condition(faults: Sequence[events_pb2.NodeFault]) -> _Faults:
    """One condition a reason and GPU; several faults of one kind are told together."""
    words: dict[str, list[str]] = {}
    grave: dict[str, set[str]] = {}
    for fault in faults:
        kind = f"{_PREFIX}{fault.reason}" + (f"/{fault.gpu}" if fault.HasField("gpu") else "")
        words.setdefault(kind, []).append(fault.message)
        if fault.grave:
            grave.setdefault(kind, set()).add(fault.message)
    return tuple(
        (kind, _BETWEEN.join(sorted(found)), frozenset(grave.get(kind, ())))
        for kind, found in sorted(words.items())
    )


def _parts(message: str | None) -> set[str]:
    return set(message.split(_BETWEEN)) if message else set()
