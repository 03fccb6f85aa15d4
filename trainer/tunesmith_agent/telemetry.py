"""Samples of the node: heartbeats, the node's own series, and figures beside each job's curves."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tunesmith.api.nodes.v1 import events_pb2
from tunesmith_agent.gpus import GpuReading, Gpus
from tunesmith_agent.health import Health
from tunesmith_agent.host import Host, Share
from tunesmith_agent.nodeseries import NodeSeries
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus
from tunesmith_kit.telemetry import METRICS

log = logging.getLogger(__name__)


class Running(Protocol):
    """A running attempt, as far as its telemetry is concerned."""

    began: float

    def process_groups(self) -> list[int]:
        """Returns the ids of its process groups on this node."""
        ...

    async def send_node_series(self, step: int, values: dict[str, float]) -> None:
        """Puts a sample beside its curves; `step` is seconds since it began here."""
        ...


@dataclass(frozen=True, slots=True)
class _Sample:
    host: dict[str, float]
    gpus: list[GpuReading]
    shares: dict[str, Share]


class Sampler:
    """Measures, judges and tells.

    Args:
        seconds: between samples.
        running: returns the attempts that run now, by name.
        backlog: returns the bytes that are not known to be stored.
    """

    def __init__(self, node: str, bus: Bus, gpus: Gpus, host: Host, health: Health, seconds: float) -> None:
        self._node, self._bus, self._gpus, self._host = node, bus, gpus, host
        self._health, self._seconds = health, seconds
        self._series = NodeSeries(node, bus)
        self._num_xids: dict[int, int] = {}

    async def run(self, running: Callable[[], dict[str, Running]], backlog: Callable[[], int]) -> None:
        """Works until it is cancelled."""
        await self._series.start()
        due = time.monotonic()
        while True:
            due = max(due + self._seconds, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            attempts = running()
            groups = {name: attempt.process_groups() for name, attempt in attempts.items()}
            # In a thread: a driver that looks for a sick GPU may take seconds.
            sample = await asyncio.to_thread(self._measure, groups)
            await self._beat(sample, backlog())
            await self._series.add(time.time(), self._values(sample))
            for name, attempt in attempts.items():
                values = _beside_curves(sample, sample.shares[name])
                await attempt.send_node_series(int(time.time() - attempt.began), values)

    async def stop(self) -> None:
        """Sends what was measured last."""
        await self._series.stop()

    def _measure(self, groups: dict[str, list[int]]) -> _Sample:
        return _Sample(self._host.read(), self._gpus.read(), self._host.shares(groups))

    async def _beat(self, sample: _Sample, backlog: int) -> None:
        beat = events_pb2.NodeHeartbeat(
            node_id=self._node,
            cpu_percent=sample.host["cpu/percent"],
            memory_used_bytes=int(sample.host["memory/used_bytes"]),
            disk_free_bytes=int(sample.host["disk/free_bytes"]),
            gpus=[gpu.sample() for gpu in sample.gpus],
            spool_backlog_bytes=backlog,
            faults=self._health.judge(sample.gpus, sample.host["disk/free_bytes"]),
        )
        beat.time.GetCurrentTime()
        METRICS.spool_backlog.set(backlog)
        METRICS.cpu_percent.set(beat.cpu_percent)
        METRICS.memory_used.set(beat.memory_used_bytes)
        METRICS.disk_free.set(beat.disk_free_bytes)
        for gpu in beat.gpus:
            METRICS.gpu_utilization.labels(gpu=gpu.index).set(gpu.utilization_percent)
            METRICS.gpu_memory_used.labels(gpu=gpu.index).set(gpu.memory_used_bytes)
        await self._bus.publish_core(subjects.heartbeat(self._node), beat.SerializeToString())

    def _values(self, sample: _Sample) -> dict[str, float]:
        values = dict(sample.host)
        for gpu in sample.gpus:
            self._num_xids[gpu.index] = self._num_xids.get(gpu.index, 0) + len(gpu.xids)
            values |= {f"gpu{gpu.index}/{key}": value for key, value in gpu.figures.items()}
            values[f"gpu{gpu.index}/xid_errors"] = float(self._num_xids[gpu.index])
            values[f"gpu{gpu.index}/num_processes"] = float(len(gpu.memory_by_pid))
        return values


_BESIDE = ("utilization_percent", "memory_used_bytes", "power_watts", "temperature_celsius")


def _beside_curves(sample: _Sample, share: Share) -> dict[str, float]:
    values = {
        "system/cpu_percent": sample.host["cpu/percent"],
        "system/memory_used_bytes": sample.host["memory/used_bytes"],
        "system/disk_free_bytes": sample.host["disk/free_bytes"],
        "system/job_cpu_percent": share.cpu_percent,
        "system/job_memory_bytes": float(share.memory_bytes),
        "system/job_num_threads": float(share.num_threads),
    }
    for gpu in sample.gpus:
        values |= {f"system/gpu_{gpu.index}/{key}": gpu.figures.get(key, 0.0) for key in _BESIDE}
        mine = sum(size for pid, size in gpu.memory_by_pid.items() if pid in share.pids)
        values[f"system/gpu_{gpu.index}/job_memory_bytes"] = float(mine)
    return values
