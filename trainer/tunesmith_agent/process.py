"""Trainer processes: in their own session, so that they outlive the agent; known by pid and start time."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)
_MODULE = [sys.executable, "-m", "tunesmith_trainer.worker"]


def start_ticks(pid: int) -> int | None:
    """Returns when a living process started, in clock ticks since boot; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


class TrainerProcess:
    """A trainer, ours by birth or by adoption."""

    def __init__(self, pid: int, ticks: int, child: "subprocess.Popen[bytes] | None" = None) -> None:
        self.pid, self.ticks, self._child = pid, ticks, child

    def alive(self) -> bool:
        """Whether this very process still runs."""
        if self._child is not None and self._child.poll() is not None:
            return False
        return start_ticks(self.pid) == self.ticks

    def kill(self) -> None:
        """Kills the whole process group at once."""
        if not self.alive():
            return
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def begin(self, folder: Path) -> bool:
        """Hands the run folder over; False when the process is gone. If the agent dies before this, the
        trainer reads the end of its input and ends too: so none ever runs that no notes name."""
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{folder}\n".encode())
            self._child.stdin.close()
        except BrokenPipeError:
            return False
        finally:
            if self._child.stdout is not None:
                self._child.stdout.close()
        return True

    @property
    def exit_code(self) -> int | None:
        """How it ended, if it was our child; for people only."""
        return self._child.poll() if self._child is not None else None


def _environment(gpus: Sequence[int]) -> dict[str, str]:
    # Our own settings hold tokens: they stay with the agent.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TUNESMITH_")}
    kept["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in gpus)
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


def launch(folder: Path, gpus: Sequence[int]) -> TrainerProcess:
    """Starts a trainer for a run folder; it waits for `begin`."""
    with (folder / "logs" / "rank-0.log").open("ab") as output:
        child = subprocess.Popen(
            [*_MODULE, "--standby"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=output,
            env=_environment(gpus),
            cwd=folder,
            start_new_session=True,
        )
    return TrainerProcess(child.pid, start_ticks(child.pid) or 0, child)


class Standby:
    """A trainer that has its imports done and waits for a run folder; saves some seconds a job on the CPU."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False

    @property
    def pid(self) -> int | None:
        """Process id of the waiting trainer."""
        return self._child.pid if self._child is not None else None

    def warm(self) -> None:
        """Starts a waiting trainer if there is none."""
        if not self._enabled or (self._child is not None and self._child.poll() is None):
            return
        self._ready = False
        self._child = subprocess.Popen(
            [*_MODULE, "--standby"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(()),
            start_new_session=True,
        )

    async def wait_ready(self) -> bool:
        """Waits until the waiting trainer has its imports done; False when it died before."""
        child = self._child
        if child is None or child.stdout is None:
            return False
        if not self._ready:
            line = await asyncio.to_thread(child.stdout.readline)
            self._ready = line.strip() == b"ready"
            if not self._ready:
                log.warning(
                    "the standby trainer died; jobs start without it", extra={"exit_code": child.poll()}
                )
        return self._ready

    async def take(self) -> TrainerProcess | None:
        """Gives the waiting trainer away; None when there is none."""
        if not await self.wait_ready():
            return None
        child, self._child = self._child, None
        assert child is not None
        ticks = start_ticks(child.pid)
        return TrainerProcess(child.pid, ticks, child) if ticks is not None else None

    def stop(self) -> None:
        """Ends the waiting trainer."""
        if self._child is not None and self._child.stdin is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()
