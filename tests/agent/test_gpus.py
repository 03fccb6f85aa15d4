"""GPUs of a node: what a driver reports, a driver that fails, and no driver at all."""

import logging
from types import SimpleNamespace

import pytest

from tunesmith_agent import gpus
from tunesmith_agent.gpus import NoGpus, NvmlGpus, find_gpus

GIB = 1024**3


class Driver:
    """NVML of a machine with two GPUs, as far as the agent calls it; those in `lost` fell off the bus."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """As pynvml's."""

    def __init__(self) -> None:
        self.lost: set[int] = set()

    def nvmlInit(self) -> None:
        """The driver is there."""

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "NVIDIA L4"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=24 * GIB, used=(handle + 1) * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        if handle in self.lost:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(gpu=40 + handle)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 60 + handle

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 71_500  # milliwatts


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The edge to the hardware: this machine has no GPU."""
    driver = Driver()
    monkeypatch.setattr(gpus, "pynvml", driver)
    return driver


def test_every_gpu_is_named_with_its_memory(driver: Driver) -> None:
    found = find_gpus()
    assert isinstance(found, NvmlGpus)
    assert [(gpu.index, gpu.uuid, gpu.model, gpu.memory_bytes) for gpu in found.inventory()] == [
        (0, "GPU-0", "NVIDIA L4", 24 * GIB),
        (1, "GPU-1", "NVIDIA L4", 24 * GIB),
    ]


def test_a_sample_has_the_units_of_the_contract(driver: Driver) -> None:
    first, second = find_gpus().sample()
    assert (first.index, second.index) == (0, 1)
    assert (second.utilization_percent, second.memory_used_bytes) == (41.0, 2 * GIB)
    assert (second.temperature_celsius, second.power_watts) == (61.0, 71.5)


def test_a_lost_gpu_costs_its_own_figures_only(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    driver.lost.add(1)
    with caplog.at_level(logging.WARNING):
        first, second = find_gpus().sample()
    assert first.utilization_percent == 40.0
    assert (second.index, second.utilization_percent) == (1, 0.0)
    assert "a GPU cannot be measured" in caplog.text


def test_a_node_without_driver_has_no_gpus(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise driver.NVMLError("NVML Shared Library Not Found")

    monkeypatch.setattr(driver, "nvmlInit", missing)
    found = find_gpus()
    assert isinstance(found, NoGpus)
    assert (found.inventory(), found.sample()) == ([], [])
