"""What the operating system tells of a node, and of the processes of each job on it."""

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Share:
    """What the processes of one attempt use. CPU in percent of one processor; memory shared between processes
    counts for each of them."""

    cpu_percent: float
    memory_bytes: int
    num_threads: int
    pids: frozenset[int]


class Host:
    """Measures the node. Rates are those since the last call; at the first there are none.

    Args:
        folder: lies on the disk where runs lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counts: dict[str, float] = {}
        self._counted = self._shared = time.monotonic()
        self._cpu_seconds: dict[int, float] = {}
        psutil.cpu_percent()  # the first answer means nothing

    def read(self) -> dict[str, float]:
        """Returns figures by key; the key tells the unit."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._folder))
        return {
            "cpu/percent": psutil.cpu_percent(),
            "load/1min": round(os.getloadavg()[0], 2),
            "memory/used_bytes": float(memory.used),
            "memory/available_bytes": float(memory.available),
            "swap/used_bytes": float(psutil.swap_memory().used),
            "disk/free_bytes": float(disk.free),
            **self._rates(),
        }

    def _rates(self) -> dict[str, float]:
        disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
        counts: dict[str, float] = {}
        if disk is not None:
            counts["disk/read_bytes_per_second"] = disk.read_bytes
            counts["disk/written_bytes_per_second"] = disk.write_bytes
        if network is not None:
            counts["network/received_bytes_per_second"] = network.bytes_recv
            counts["network/sent_bytes_per_second"] = network.bytes_sent
        now = time.monotonic()
        seconds, before = now - self._counted, self._counts
        self._counted, self._counts = now, counts
        if seconds <= 0:
            return {}
        # Whole bytes: more digits would only cost room.
        return {
            key: float(round(max(0.0, n - before[key]) / seconds))
            for key, n in counts.items()
            if key in before
        }

    def shares(self, groups: Mapping[str, Iterable[int]]) -> dict[str, Share]:
        """Returns what the processes in the process groups of each name use, threads of loaders included."""
        owners = {group: name for name, ids in groups.items() for group in ids}
        pids: dict[str, list[int]] = {name: [] for name in groups}
        for pid in psutil.pids() if owners else []:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                name = owners.get(os.getpgid(pid))
                if name is not None:
                    pids[name].append(pid)
        now = time.monotonic()
        seconds, self._shared = now - self._shared, now
        before, self._cpu_seconds = self._cpu_seconds, {}
        return {name: self._share(found, before, seconds) for name, found in pids.items()}

    def _share(self, pids: list[int], before: Mapping[int, float], seconds: float) -> Share:
        cpu, memory, threads = 0.0, 0, 0
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    used = times.user + times.system
                    memory += process.memory_info().rss
                    threads += process.num_threads()
                self._cpu_seconds[pid] = used
                cpu += max(0.0, used - before.get(pid, used))
        percent = round(100 * cpu / seconds, 1) if seconds > 0 else 0.0
        return Share(percent, memory, threads, frozenset(pids))
