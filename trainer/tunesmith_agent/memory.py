"""Whether the kernel killed a process for want of memory."""

from pathlib import Path

_VMSTAT = Path("/proc/vmstat")


def num_oom_kills() -> int:
    """Returns how many processes the kernel has killed for want of memory since boot, of any cgroup.

    0 where the kernel does not tell (before 4.13).
    """
    try:
        lines = _VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
