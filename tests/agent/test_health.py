"""What is wrong with a node, as its samples come in."""

from tunesmith.api.nodes.v1 import events_pb2
from tunesmith_agent.gpus import GpuReading
from tunesmith_agent.health import Health, Limits

FREE = 50e9


def health() -> Health:
    return Health(Limits(gpu_celsius=90, gpu_hot_seconds=30, disk_free_bytes=1e9))


def gpu(index: int = 0, *, xids: tuple[int, ...] = (), lost: bool = False, **figures: float) -> GpuReading:
    return GpuReading(index, figures, xids, lost)


def told(faults: list[events_pb2.NodeFault]) -> list[tuple[str, bool, int | None]]:
    return [(each.reason, each.grave, each.gpu if each.HasField("gpu") else None) for each in faults]


def test_a_healthy_node_has_no_faults() -> None:
    reading = gpu(temperature_celsius=89.0, throttle_reasons=0x4, ecc_uncorrected_errors=5.0)
    judge = health()
    for now in range(0, 100, 10):
        assert judge.judge([reading], FREE, float(now)) == []


def test_an_error_of_the_hardware_holds_on_in_the_same_words_and_one_of_a_program_is_not_grave() -> None:
    judge = health()
    first = judge.judge([gpu(0, xids=(13,)), gpu(1, xids=(79,))], FREE, 0.0)
    assert told(first) == [("GPU_XID", False, 0), ("GPU_XID", True, 1)]
    assert "fallen off the bus" in first[1].message
    assert judge.judge([gpu(0), gpu(1)], FREE, 500.0) == first


def test_memory_errors_count_from_the_first_sample() -> None:
    judge = health()
    assert judge.judge([gpu(ecc_uncorrected_errors=3.0)], FREE, 0.0) == []
    grown = judge.judge([gpu(ecc_uncorrected_errors=4.0)], FREE, 2.0)
    assert told(grown) == [("GPU_ECC", True, 0)]
    assert judge.judge([gpu(ecc_uncorrected_errors=4.0)], FREE, 4.0) == grown
    assert judge.judge([gpu(ecc_uncorrected_errors=5.0)], FREE, 6.0) != grown  # it comes anew


def test_heat_is_a_fault_when_it_lasts_and_ends_with_it() -> None:
    judge, hot, cool = health(), gpu(temperature_celsius=95.0), gpu(temperature_celsius=60.0)
    assert judge.judge([hot], FREE, 0.0) == []
    assert judge.judge([cool], FREE, 20.0) == []
    assert judge.judge([hot], FREE, 40.0) == []
    assert judge.judge([hot], FREE, 69.0) == []
    faults = judge.judge([hot], FREE, 70.0)
    assert told(faults) == [("GPU_HOT", True, 0)]
    assert judge.judge([hot], FREE, 90.0) == faults
    assert judge.judge([cool], FREE, 92.0) == []


def test_a_gpu_slowed_down_by_heat_is_told_by_who_slows_it_down() -> None:
    judge = health()
    readings = [gpu(0, throttle_reasons=0x40), gpu(1, throttle_reasons=0x20)]
    judge.judge(readings, FREE, 0.0)
    assert told(judge.judge(readings, FREE, 30.0)) == [("GPU_HOT", True, 0), ("GPU_WARM", False, 1)]


def test_a_lost_gpu_and_a_full_disk() -> None:
    judge = health()
    assert told(judge.judge([gpu(lost=True)], FREE, 0.0)) == [("GPU_LOST", True, 0)]
    assert judge.judge([gpu()], FREE, 2.0) == []
    full = judge.judge([gpu()], 0.9e9, 4.0)
    assert told(full) == [("DISK_FULL", False, None)]
    assert judge.judge([gpu()], 1.1e9, 6.0) == full  # not yet enough to be over
    assert judge.judge([gpu()], 1.3e9, 8.0) == []
