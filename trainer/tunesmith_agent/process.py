"""Trainer processes: in their own session, so that they outlive the agent; known by pid and start time."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

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

    def dump_stacks(self) -> None:
        """Makes it write the stack of each of its threads to its log."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR2)

    def begin(self, folder: Path, rank: int = 0) -> bool:
        """Hands the run folder over; False when the process is gone. If the agent dies before this, the
        trainer reads the end of its input and ends too: so none ever runs that no notes name."""
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{rank} {folder}\n".encode())
            self._child.stdin.close()
        except BrokenPipeError:
            return False
        return True

    @property
    def exit_code(self) -> int | None:
        """How it ended, if it was our child; for people only."""
        return self._child.poll() if self._child is not None else None


class Group:
    """The ranks of one attempt. They live and die together: no rank can train without the others."""

    def __init__(self, ranks: Sequence[TrainerProcess]) -> None:
        self.ranks = list(ranks)

    def alive(self) -> bool:
        """Whether any rank still runs."""
        return any(rank.alive() for rank in self.ranks)

    def dead(self) -> list[int]:
        """The ranks that have ended."""
        return [number for number, rank in enumerate(self.ranks) if not rank.alive()]

    def kill(self) -> None:
        """Kills every rank at once."""
        for rank in self.ranks:
            rank.kill()

    def dump_stacks(self) -> None:
        """Makes every rank write its stacks to its log."""
        for rank in self.ranks:
            rank.dump_stacks()


def _environment(gpus: Sequence[int]) -> dict[str, str]:
    # Our own settings hold tokens: they stay with the agent.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TUNESMITH_", "AWS_"))}
    kept["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in gpus)
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


def launch(folder: Path, gpus: Sequence[int], rank: int = 0) -> TrainerProcess:
    """Starts a trainer for a run folder; it waits for `begin`."""
    with (folder / "logs" / f"rank-{rank}.log").open("ab") as output:
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

    @property
    def pid(self) -> int | None:
        """Process id of the waiting trainer."""
        return self._child.pid if self._child is not None else None

    def warm(self) -> None:
        """Starts a waiting trainer if there is none."""
        if not self._enabled or (self._child is not None and self._child.poll() is None):
            return
        self._child = subprocess.Popen(
            [*_MODULE, "--standby"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # errors of its imports go to the agent's own log
            env=_environment(()),
            start_new_session=True,
        )

    def take(self) -> TrainerProcess | None:
        """Gives the waiting trainer away, its imports done or not; None when there is none."""
        child, self._child = self._child, None
        ticks = start_ticks(child.pid) if child is not None else None
        return TrainerProcess(child.pid, ticks, child) if child is not None and ticks is not None else None

    def stop(self) -> None:
        """Ends the waiting trainer."""
        if self._child is not None and self._child.stdin is not None:
            self._child.kill()
            self._child.wait()
            self._child.stdin.close()
