"""Real child processes for tests: started, waited for without sleeping blindly, and always ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

BIN = Path(sys.executable).parent


T = TypeVar("T")


def wait_for(look: Callable[[], T | None], seconds: float, what: str) -> T:
    """Returns what `look` finds once it is neither None nor False; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not asked for its end yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment without settings of the developer's own platform."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TUNESMITH_")}
    return {**kept, **extra}


class Process:
    """A child in its own session, its output in a file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.name, self.log, self._command, self._env = name, log, list(command), dict(env)
        self.start()

    def start(self) -> None:
        """Starts it (again)."""
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                self._command, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                env=clean_environment(self._env), start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._child.poll() is None

    def kill(self) -> None:
        """SIGKILL, to this process alone; what it started lives on."""
        self._child.kill()
        self._child.wait()

    def stop(self, seconds: float = 20) -> int:
        """SIGTERM, then SIGKILL; returns the exit code."""
        if self.alive():
            self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end on SIGTERM:\n{self.tail()}") from None

    def tail(self, num_bytes: int = 4000) -> str:
        """Returns the end of its output."""
        return self.log.read_bytes()[-num_bytes:].decode(errors="replace") if self.log.exists() else ""
