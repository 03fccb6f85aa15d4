"""What is wrong with a node, judged from its samples.

A fault is told in every heartbeat for as long as it holds, in the same words: who acts on it knows it again.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tunesmith.api.nodes.v1 import events_pb2
from tunesmith_agent.gpus import HOT_BY_HARDWARE, HOT_BY_SOFTWARE, GpuReading

# XID errors that mean broken hardware or a GPU that must be reset. Others come from programs.
# Source: NVIDIA's XID catalogue.
FATAL_XIDS = {
    48: "memory error of two bits",
    62: "internal micro-controller halted",
    64: "memory rows cannot be remapped",
    74: "NVLink error",
    79: "fallen off the bus",
    95: "uncontained memory error",
    119: "system processor does not answer",
    120: "system processor error",
    140: "memory error that was not recovered",
    143: "initialisation failed",
}
_DISK_SLACK = 1.2  # a disk is no longer full when so much more is free than the limit


@dataclass(frozen=True)
class Limits:
    """When heat and a full disk become faults."""

    gpu_celsius: float
    gpu_hot_seconds: float
    disk_free_bytes: float


class Health:
    """Remembers what was seen, and judges each sample."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._xids: dict[tuple[int, int], str] = {}
        self._first_ecc: dict[int, float] = {}
        self._ecc: dict[int, tuple[float, str]] = {}
        self._since: dict[tuple[str, int], tuple[float, str]] = {}  # fault and GPU -> since when
        self._disk_full = False

    def judge(
        self, gpus: Sequence[GpuReading], disk_free: float, now: float | None = None
    ) -> list[events_pb2.NodeFault]:
        """Returns the faults that hold now. `now` is a time in seconds that never goes back."""
        now = time.monotonic() if now is None else now
        faults = [fault for gpu in gpus for fault in self._of_gpu(gpu, now)]
        self._disk_full = disk_free < self._limits.disk_free_bytes * (_DISK_SLACK if self._disk_full else 1)
        since = self._holds("DISK_FULL", -1, self._disk_full, now)
        if since is not None:
            faults.append(_fault("DISK_FULL", f"hardly any disk free since {since[1]}", None, grave=False))
        return faults

    def _of_gpu(self, gpu: GpuReading, now: float) -> list[events_pb2.NodeFault]:
        faults: list[events_pb2.NodeFault] = []
        for xid in gpu.xids:
            self._xids[gpu.index, xid] = _clock()
        for (index, xid), when in self._xids.items():
            if index == gpu.index:
                grave = xid in FATAL_XIDS
                what = FATAL_XIDS.get(xid, "reported by the driver")
                faults.append(_fault("GPU_XID", f"XID {xid} ({what}) at {when}", index, grave))
        lost = self._holds("GPU_LOST", gpu.index, gpu.lost, now)
        if lost is not None:
            faults.append(_fault("GPU_LOST", f"the driver lost it at {lost[1]}", gpu.index))
        return [*faults, *self._ecc_of(gpu), *self._heat_of(gpu, now)]

    def _ecc_of(self, gpu: GpuReading) -> list[events_pb2.NodeFault]:
        count = gpu.figures.get("ecc_uncorrected_errors")
        if count is not None:
            first = self._first_ecc.setdefault(gpu.index, count)
            known, _ = self._ecc.get(gpu.index, (first, ""))
            if count > known:
                self._ecc[gpu.index] = (count, _clock())
        if gpu.index not in self._ecc:
            return []
        count, when = self._ecc[gpu.index]
        return [_fault("GPU_ECC", f"{count:.0f} memory errors not corrected, the last at {when}", gpu.index)]

    def _heat_of(self, gpu: GpuReading, now: float) -> list[events_pb2.NodeFault]:
        celsius, throttled = (
            gpu.figures.get("temperature_celsius", 0.0),
            gpu.figures.get("throttle_reasons", 0),
        )
        hot = celsius >= self._limits.gpu_celsius or bool(int(throttled) & HOT_BY_HARDWARE)
        faults = []
        for reason, holds, words, grave in (
            ("GPU_HOT", hot, "too hot", True),
            ("GPU_WARM", not hot and bool(int(throttled) & HOT_BY_SOFTWARE), "slowed down by heat", False),
        ):
            since = self._holds(reason, gpu.index, holds, now)
            if since is not None and now - since[0] >= self._limits.gpu_hot_seconds:
                faults.append(_fault(reason, f"{words} since {since[1]}", gpu.index, grave))
        return faults

    def _holds(self, reason: str, gpu: int, holds: bool, now: float) -> tuple[float, str] | None:
        """Since when something holds, or None when it does not."""
        if not holds:
            self._since.pop((reason, gpu), None)
            return None
        return self._since.setdefault((reason, gpu), (now, _clock()))


def _fault(reason: str, message: str, gpu: int | None, grave: bool = True) -> events_pb2.NodeFault:
    whose = "" if gpu is None else f"GPU {gpu}: "
    return events_pb2.NodeFault(reason=reason, message=whose + message, grave=grave, gpu=gpu)


def _clock() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
