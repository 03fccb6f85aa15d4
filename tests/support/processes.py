"""Real child processes for tests: started, waited for without sleeping blindly, and always ended."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

BIN = Path(sys.executable).parent


T = TypeVar("T")


def wait_for(look: Callable[[], T | None], seconds: float, what: str) -> T:
    """Returns what `look` finds once it is something and not nothing; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not asked for its end yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children(pid: int, word: str) -> list[psutil.Process]:
    """Processes below one whose command line has a word, those that end while we look left out."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # a zombie counts as such too
                if any(word in part for part in child.cmdline()):
                    found.append(child)
    return found


_given: set[int] = set()


def free_port() -> int:
    """Returns a port nobody uses now, of those the system gives to nobody by itself: it is bound later, and
    until then no connection and no server that takes any port may get it."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10_000, max(lowest, 20_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment without settings of the developer's own platform, and without an encoder: few
    tests search by meaning, and all would pay for it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TUNESMITH_")}
    return {**kept, "TUNESMITH_REGISTRY_ENCODER": "none", **extra}


class Process:
    """A child in its own session, its output in a file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.name, self.log, self._command, self._env = name, log, list(command), dict(env)
        self.start()

    def start(self) -> None:
        """Starts it (again)."""
        with self.log.open("ab") as output:
            self._began = output.tell()
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

    def stop(self, seconds: float = 90) -> int:
        """SIGTERM, then SIGKILL; returns the exit code."""
        if self.alive():
            self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end on SIGTERM:\n{self.tail()}") from None

    def said(self) -> str:
        """Returns its output since it was started last."""
        return self.log.read_bytes()[self._began :].decode(errors="replace")

    def tail(self, num_bytes: int = 4000) -> str:
        """Returns the end of its output."""
        return self.log.read_bytes()[-num_bytes:].decode(errors="replace") if self.log.exists() else ""
