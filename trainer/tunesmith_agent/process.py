"""Trainer processes: in their own session, so that they outlive the agent; known by pid and start time."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

_FORK_SECONDS = 20.0
_KEPT_CODES = 100
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
    """A trainer: started by us, forked for us, or adopted."""

    def __init__(
        self,
        pid: int,
        ticks: int,
        child: "subprocess.Popen[bytes] | None" = None,
        server: "ForkServer | None" = None,
    ) -> None:
        self.pid, self.ticks, self._child, self._server = pid, ticks, child, server

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
        if self._server is not None:
            return self._server.begin(self.pid, folder, rank)
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
        """How it ended, if it was ours from the start; for people only."""
        if self._server is not None:
            return self._server.exit_code(self.pid)
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


def environment(gpus: Sequence[int]) -> dict[str, str]:
    """What a process with torch gets of our environment."""
    # Our own settings hold tokens: they stay with the agent.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TUNESMITH_", "AWS_"))}
    kept["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in gpus)
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


def launch(folder: Path, gpus: Sequence[int], rank: int = 0) -> TrainerProcess:
    """Starts a trainer for a run folder; it waits for `begin`."""
    with (folder / "logs" / f"rank-{rank}.log").open("ab") as output:
        child = subprocess.Popen(
            [*_MODULE, "--wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=output,
            env=environment(gpus),
            cwd=folder,
            start_new_session=True,
        )
    return TrainerProcess(child.pid, start_ticks(child.pid) or 0, child)


class ForkServer:
    """A process that has a trainer's imports done and forks trainers: 0.1 s where a start costs 5 s."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._rest = b""
        self._forked: deque[int] = deque()
        self._exit_codes: dict[int, int] = {}

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._child.pid if self._child is not None else None

    def alive(self) -> bool:
        """Whether it runs."""
        return self._child is not None and self._child.poll() is None

    def warm(self) -> None:
        """Starts it if it does not run."""
        if not self._enabled or self.alive():
            return
        self.stop()
        self._ready, self._rest = False, b""
        self._forked.clear()
        self._child = subprocess.Popen(
            [*_MODULE, "--standby"],  # errors of its imports go to the agent's own log
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(()),
            start_new_session=True,
        )
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)

    def ready(self) -> bool:
        """Whether its imports are done."""
        self._hear()
        return self._ready and self.alive()

    async def fork(self, unwanted: Callable[[], bool]) -> TrainerProcess | None:
        """Returns a trainer that waits for `begin`; None when none came within some seconds, or before it was
        unwanted."""
        if not self.ready() or not self._say("fork"):
            return None
        deadline = time.monotonic() + _FORK_SECONDS
        while not self._forked:
            if time.monotonic() > deadline or not self.alive() or unwanted():
                self.stop()  # a late answer would be taken for another's
                return None
            await asyncio.sleep(0.002)
            self._hear()
        pid = self._forked.popleft()
        ticks = start_ticks(pid)
        return TrainerProcess(pid, ticks, server=self) if ticks is not None else None

    def begin(self, pid: int, folder: Path, rank: int) -> bool:
        """Lets a forked trainer go; False when the server is gone, and the trainer with it."""
        return self._say(f"begin {pid} {rank} {folder}")

    def exit_code(self, pid: int) -> int | None:
        """How a forked trainer ended, as far as the server told."""
        self._hear()
        return self._exit_codes.get(pid)

    def stop(self) -> None:
        """Ends it and the trainers that still wait; those at work go on."""
        if self._child is not None and self._child.stdin is not None and self._child.stdout is not None:
            self._child.kill()
            self._child.wait()
            self._child.stdin.close()
            self._child.stdout.close()
            self._child = None

    def _say(self, line: str) -> bool:
        if self._child is None or self._child.stdin is None:
            return False
        try:
            self._child.stdin.write(f"{line}\n".encode())
            self._child.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def _hear(self) -> None:
        if self._child is None or self._child.stdout is None:
            return
        while data := self._child.stdout.read(65536):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._take(line.decode().split())

    def _take(self, words: list[str]) -> None:
        if words == ["ready"]:
            self._ready = True
        elif words[0] == "forked":
            self._forked.append(int(words[1]))
        elif words[0] == "ended":
            self._exit_codes[int(words[1])] = int(words[2])
            if len(self._exit_codes) > _KEPT_CODES:
                del self._exit_codes[next(iter(self._exit_codes))]
