"""The lease monitor: which nodes are still heard of.

Clocks are this process's own and start anew with it and with each reconnect to the bus, so an outage of ours
never costs a healthy trainer its job. Safety does not rest on them: a node that was given up too early finds
its reports refused by their epoch.
"""

import asyncio
import logging

from tunesmith.errors import Unavailable
from tunesmith_jobs.fleet import FleetStore
from tunesmith_kit.clock import Clock
from tunesmith_kit.lease import LeaseWatcher, lease_key
from tunesmith_kit.telemetry import METRICS

log = logging.getLogger(__name__)
TTL_SECONDS = 10.0
_LOOK_SECONDS = 0.5


class LeaseMonitor:
    """Marks nodes whose lease expired, and after the grace of each job gives its attempt up."""

    def __init__(
        self, fleet: FleetStore, watcher: LeaseWatcher, clock: Clock, ttl_seconds: float = TTL_SECONDS
    ) -> None:
        self._fleet, self._watcher, self._clock, self._ttl = fleet, watcher, clock, ttl_seconds

    async def run(self) -> None:
        """Looks twice a second until it is cancelled."""
        while True:
            try:
                for node_id, reachable in (await self._fleet.reachable()).items():
                    await self._look(node_id, reachable)
            except Unavailable:
                # While the database was away nobody could be heard out: the clocks start anew.
                self._watcher.restart_clocks()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self, node_id: str, reachable: bool) -> None:
        key = lease_key("node", node_id)
        if not self._watcher.expired(key, self._ttl):
            if not reachable and self._watcher.last_seen(key) is not None:
                await self._fleet.set_reachable(node_id, True)
            return
        if reachable:
            METRICS.lease_expiries.inc()
            log.warning("lease expired", extra={"node": node_id})
            await self._fleet.set_reachable(node_id, False)
        for job_id, epoch, grace in await self._fleet.graces(node_id):
            # Both count from the last renewal: a dead node costs its jobs the longer of the two, not both.
            if self._watcher.expired(key, max(self._ttl, grace.total_seconds())):
                log.warning("attempt given up", extra={"node": node_id, "job": job_id, "epoch": epoch})
                await self._fleet.give_up(job_id, epoch, node_id)
