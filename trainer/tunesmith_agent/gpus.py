"""GPUs behind an interface: NVML where there is a driver; a node without GPUs is normal.

NVML needs no CUDA context, and so survives a CUDA crash of a trainer.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pynvml

from tunesmith.api.nodes.v1 import events_pb2, nodes_pb2
from tunesmith.errors import InvalidArgument

log = logging.getLogger(__name__)
# Bits of `throttle_reasons`, as NVML has them.
HOT_BY_SOFTWARE, HOT_BY_HARDWARE = 0x20, 0x40


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What a GPU measures now. Of `figures`, by key, only what its driver tells is there.

    `xids` are the errors the driver told of since the last reading; `memory_by_pid` is in bytes.
    """

    index: int
    figures: Mapping[str, float] = field(default_factory=dict)
    xids: tuple[int, ...] = ()
    lost: bool = False
    memory_by_pid: Mapping[int, int] = field(default_factory=dict)

    def sample(self) -> events_pb2.GpuSample:
        """Returns it as the heartbeat has it."""
        return events_pb2.GpuSample(
            index=self.index,
            utilization_percent=self.figures.get("utilization_percent", 0.0),
            memory_used_bytes=int(self.figures.get("memory_used_bytes", 0)),
            power_watts=self.figures.get("power_watts", 0.0),
            temperature_celsius=self.figures.get("temperature_celsius", 0.0),
        )


class Gpus(Protocol):
    """The GPUs of a node."""

    def inventory(self) -> list[nodes_pb2.Gpu]:
        """Returns what is built in."""
        ...

    def read(self) -> list[GpuReading]:
        """Measures each GPU now."""
        ...


class NoGpus:
    """A node without GPUs."""

    def inventory(self) -> list[nodes_pb2.Gpu]:
        return []

    def read(self) -> list[GpuReading]:
        return []


def _memory_temperature(handle: Any) -> float:
    value = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_MEMORY_TEMP])[0]
    if value.nvmlReturn != 0:
        raise pynvml.NVMLError(value.nvmlReturn)
    return float(value.value.uiVal)


def _ecc(kind: str) -> Callable[[Any], float]:
    def read(handle: Any) -> float:
        error_type = getattr(pynvml, f"NVML_MEMORY_ERROR_TYPE_{kind}")
        return float(pynvml.nvmlDeviceGetTotalEccErrors(handle, error_type, pynvml.NVML_VOLATILE_ECC))

    return read


def _pcie(direction: str) -> Callable[[Any], float]:
    def read(handle: Any) -> float:
        counter = getattr(pynvml, f"NVML_PCIE_UTIL_{direction}_BYTES")
        return float(pynvml.nvmlDeviceGetPcieThroughput(handle, counter)) * 1024

    return read


# How each figure is read. The key tells the unit.
_FIGURES: dict[str, Callable[[Any], float]] = {
    "utilization_percent": lambda handle: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
    "memory_used_bytes": lambda handle: float(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
    "power_watts": lambda handle: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    "temperature_celsius": lambda handle: float(
        pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
    ),
    "memory_temperature_celsius": _memory_temperature,
    "sm_clock_mhz": lambda handle: float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
    "memory_clock_mhz": lambda handle: float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)),
    "pcie_received_bytes_per_second": _pcie("RX"),
    "pcie_sent_bytes_per_second": _pcie("TX"),
    "ecc_corrected_errors": _ecc("CORRECTED"),
    "ecc_uncorrected_errors": _ecc("UNCORRECTED"),
    "throttle_reasons": lambda handle: float(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
}


class NvmlGpus:
    """NVIDIA's GPUs."""

    def __init__(self) -> None:
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        self._unsupported: set[tuple[int, str]] = set()
        self._events = self._listen()

    def inventory(self) -> list[nodes_pb2.Gpu]:
        return [
            nodes_pb2.Gpu(
                index=index,
                uuid=pynvml.nvmlDeviceGetUUID(handle),
                model=pynvml.nvmlDeviceGetName(handle),
                memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            )
            for index, handle in enumerate(self._handles)
        ]

    def read(self) -> list[GpuReading]:
        xids = self._xids()
        return [self._read(index, handle, xids.get(index, ())) for index, handle in enumerate(self._handles)]

    def _read(self, index: int, handle: Any, xids: tuple[int, ...]) -> GpuReading:
        figures: dict[str, float] = {}
        for key, measure in _FIGURES.items():
            if (index, key) in self._unsupported:
                continue
            try:
                figures[key] = measure(handle)
            except pynvml.NVMLError_GpuIsLost:
                return GpuReading(index, xids=xids, lost=True)
            except pynvml.NVMLError_NotSupported:
                self._unsupported.add((index, key))
            except pynvml.NVMLError as error:
                log.warning(
                    "a GPU cannot be measured", extra={"gpu": index, "what": key, "error": str(error)}
                )
        return GpuReading(index, figures, xids, memory_by_pid=_memory_by_pid(handle))

    def _listen(self) -> Any:
        """Asks the driver to tell of XID errors; None where it cannot."""
        try:
            events = pynvml.nvmlEventSetCreate()
            for handle in self._handles:
                pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
            return events
        except pynvml.NVMLError as error:
            log.warning("the driver does not tell of XID errors", extra={"error": str(error)})
            return None

    def _xids(self) -> dict[int, tuple[int, ...]]:
        found: dict[int, tuple[int, ...]] = {}
        while self._events is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                index = pynvml.nvmlDeviceGetIndex(event.device)
            except pynvml.NVMLError_Timeout:
                break
            except pynvml.NVMLError as error:
                log.warning("events of GPUs cannot be read", extra={"error": str(error)})
                break
            found[index] = (*found.get(index, ()), int(event.eventData))
        return found


def _memory_by_pid(handle: Any) -> dict[int, int]:
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return {}
    return {process.pid: int(process.usedGpuMemory or 0) for process in processes}


class FileGpus:
    """GPUs played from a JSON file that is read anew each time: for tests, on machines without any.

    `{"gpus": [{"model": "…", "memory_bytes": 1, "figures": {…}, "xids": [79], "lost": false}]}`. An entry of
    `xids` is told once: those that were there before are not told again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: dict[int, int] = {}

    def inventory(self) -> list[nodes_pb2.Gpu]:
        return [
            nodes_pb2.Gpu(
                index=index,
                uuid=f"GPU-{index}",
                model=gpu.get("model", "GPU of a file"),
                memory_bytes=gpu.get("memory_bytes", 0),
            )
            for index, gpu in enumerate(self._gpus())
        ]

    def read(self) -> list[GpuReading]:
        return [self._read(index, gpu) for index, gpu in enumerate(self._gpus())]

    def _read(self, index: int, gpu: dict[str, Any]) -> GpuReading:
        xids = tuple(gpu.get("xids", ()))
        new, self._told[index] = xids[self._told.get(index, 0) :], len(xids)
        memory = {int(pid): size for pid, size in gpu.get("memory_by_pid", {}).items()}
        return GpuReading(index, gpu.get("figures", {}), new, bool(gpu.get("lost")), memory)

    def _gpus(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._path.read_text())["gpus"]
        return found


def find_gpus(source: str = "nvml") -> Gpus:
    """Returns the node's GPUs: those of `nvml`, `none`, or those that `fake:FILE` plays."""
    kind, _, path = source.partition(":")
    if kind == "fake" and path:
        return FileGpus(Path(path))
    if source == "none":
        return NoGpus()
    if source != "nvml":
        raise InvalidArgument(
            "SETTING_INVALID", "GPUs cannot be read from there", field="TUNESMITH_AGENT_GPUS", value=source,
            remedy="say nvml, none, or fake:FILE",
        )  # fmt: skip
    try:
        pynvml.nvmlInit()
        return NvmlGpus()
    except pynvml.NVMLError:
        return NoGpus()
