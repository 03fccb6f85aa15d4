"""GPUs behind an interface: NVML where there is a driver; a node without GPUs is normal."""

import logging
from typing import Protocol

import pynvml

from tunesmith.api.nodes.v1 import events_pb2, nodes_pb2

log = logging.getLogger(__name__)


class Gpus(Protocol):
    """The GPUs of a node."""

    def inventory(self) -> list[nodes_pb2.Gpu]:
        """Returns what is built in."""
        ...

    def sample(self) -> list[events_pb2.GpuSample]:
        """Measures each GPU now."""
        ...


class NoGpus:
    """A node without GPUs."""

    def inventory(self) -> list[nodes_pb2.Gpu]:
        return []

    def sample(self) -> list[events_pb2.GpuSample]:
        return []


class NvmlGpus:
    """NVIDIA's GPUs by NVML, which needs no CUDA context and so survives a CUDA crash of a trainer."""

    def __init__(self) -> None:
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]

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

    def sample(self) -> list[events_pb2.GpuSample]:
        return [self._sample(index, handle) for index, handle in enumerate(self._handles)]

    def _sample(self, index: int, handle: object) -> events_pb2.GpuSample:
        sample = events_pb2.GpuSample(index=index)
        try:
            sample.utilization_percent = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            sample.memory_used_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
            sample.temperature_celsius = float(
                pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
            )
            sample.power_watts = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
        except pynvml.NVMLError as error:
            log.warning("a GPU cannot be measured", extra={"gpu": index, "error": str(error)})
        return sample


def find_gpus() -> Gpus:
    """Returns the node's GPUs."""
    try:
        pynvml.nvmlInit()
        return NvmlGpus()
    except pynvml.NVMLError:
        return NoGpus()
