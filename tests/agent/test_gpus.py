"""GPUs of a node: what a driver reports, a driver that fails, and no driver at all."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunesmith.errors import InvalidArgument
from tunesmith_agent import gpus
from tunesmith_agent.gpus import NoGpus, NvmlGpus, find_gpus

GIB = 1024**3


class Driver:
    """NVML of a machine with two GPUs, as far as the agent calls it; those in `lost` fell off the bus."""

    NVML_TEMPERATURE_GPU = 0
    NVML_FI_DEV_MEMORY_TEMP = 82
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES = 0, 1
    NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 0, 1
    NVML_VOLATILE_ECC = 0
    nvmlEventTypeXidCriticalError = 8

    class NVMLError(Exception):
        """As pynvml's."""

    class NVMLError_GpuIsLost(NVMLError):
        """As pynvml's."""

    class NVMLError_NotSupported(NVMLError):
        """As pynvml's."""

    class NVMLError_Timeout(NVMLError):
        """As pynvml's."""

    def __init__(self) -> None:
        self.lost: set[int] = set()
        self.silent: set[int] = set()
        self.events: list[tuple[int, int]] = []  # GPU, XID
        self.num_ecc_calls = 0

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
            raise self.NVMLError_GpuIsLost("GPU is lost")
        if handle in self.silent:
            raise self.NVMLError("unknown error")
        return SimpleNamespace(gpu=40 + handle)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 60 + handle

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 71_500  # milliwatts

    def nvmlDeviceGetFieldValues(self, handle: int, fields: list[int]) -> list[SimpleNamespace]:
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=80 + handle))]

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> int:
        return 1000 * clock

    def nvmlDeviceGetPcieThroughput(self, handle: int, direction: int) -> int:
        return 3 + direction  # kilobytes a second

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, counter: int) -> int:
        self.num_ecc_calls += 1
        if handle == 1:
            raise self.NVMLError_NotSupported("no ECC")
        return 2 + kind

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return 0x40

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=4242, usedGpuMemory=GIB)]

    def nvmlEventSetCreate(self) -> object:
        return self

    def nvmlDeviceRegisterEvents(self, handle: int, kinds: int, events: object) -> None:
        """It tells of everything."""

    def nvmlEventSetWait_v2(self, events: object, milliseconds: int) -> SimpleNamespace:
        if not self.events:
            raise self.NVMLError_Timeout("nothing happened")
        gpu, xid = self.events.pop(0)
        return SimpleNamespace(device=gpu, eventData=xid)

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle


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
    first, second = (reading.sample() for reading in find_gpus().read())
    assert (first.index, second.index) == (0, 1)
    assert (second.utilization_percent, second.memory_used_bytes) == (41.0, 2 * GIB)
    assert (second.temperature_celsius, second.power_watts) == (61.0, 71.5)


def test_every_figure_of_a_gpu_is_read(driver: Driver) -> None:
    reading = find_gpus().read()[0]
    assert reading.figures == {
        "utilization_percent": 40.0,
        "memory_used_bytes": GIB,
        "power_watts": 71.5,
        "temperature_celsius": 60.0,
        "memory_temperature_celsius": 80.0,
        "sm_clock_mhz": 1000.0,
        "memory_clock_mhz": 2000.0,
        "pcie_received_bytes_per_second": 4096.0,
        "pcie_sent_bytes_per_second": 3072.0,
        "ecc_corrected_errors": 2.0,
        "ecc_uncorrected_errors": 3.0,
        "throttle_reasons": 64.0,
    }
    assert reading.memory_by_pid == {4242: GIB}


def test_what_a_gpu_does_not_have_is_asked_for_once(driver: Driver) -> None:
    found = find_gpus()
    found.read()
    assert "ecc_corrected_errors" not in found.read()[1].figures
    assert driver.num_ecc_calls == 2 * 2 + 2  # twice of the one that has it, once of the other


def test_errors_the_driver_tells_of_come_once(driver: Driver) -> None:
    found = find_gpus()
    driver.events = [(1, 79), (1, 13)]
    assert [reading.xids for reading in found.read()] == [(), (79, 13)]
    assert [reading.xids for reading in found.read()] == [(), ()]


def test_a_lost_gpu_is_told_and_costs_its_own_figures_only(driver: Driver) -> None:
    driver.lost.add(1)
    first, second = find_gpus().read()
    assert (first.lost, first.sample().utilization_percent) == (False, 40.0)
    assert (second.lost, dict(second.figures)) == (True, {})


def test_a_figure_that_fails_costs_itself_only(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    driver.silent.add(1)
    with caplog.at_level(logging.WARNING):
        second = find_gpus().read()[1]
    assert "utilization_percent" not in second.figures
    assert second.figures["power_watts"] == 71.5
    assert "a GPU cannot be measured" in caplog.text


def test_a_node_without_driver_has_no_gpus(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise driver.NVMLError("NVML Shared Library Not Found")

    monkeypatch.setattr(driver, "nvmlInit", missing)
    found = find_gpus()
    assert isinstance(found, NoGpus)
    assert (found.inventory(), found.read()) == ([], [])


def test_gpus_come_from_where_the_setting_says(driver: Driver, tmp_path: Path) -> None:
    assert isinstance(find_gpus("none"), NoGpus)
    path = tmp_path / "gpus.json"
    path.write_text(json.dumps({"gpus": [{"model": "L4", "memory_bytes": GIB, "xids": [31]}]}))
    played = find_gpus(f"fake:{path}")
    assert [(gpu.model, gpu.memory_bytes) for gpu in played.inventory()] == [("L4", GIB)]
    assert [reading.xids for reading in (*played.read(), *played.read())] == [(31,), ()]
    with pytest.raises(InvalidArgument) as error:
        find_gpus("nvlm")
    assert (error.value.reason, error.value.field) == ("SETTING_INVALID", "TUNESMITH_AGENT_GPUS")
