"""`tunesmith watch` in a terminal: the whole screen, Ctrl-C, a terminal that is too small."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.platform import Platform
from tests.support.processes import BIN, clean_environment, wait_for
from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.metrics.v1 import records_pb2

_SECONDS = 60
_STEERING = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[()][A-B0-2])")


class Terminal:
    """A program in a pseudo-terminal of a size, and all it has shown so far."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master, self.process, self._raw = master, process, b""
        os.set_blocking(master, False)

    def shown(self) -> str:
        """Returns what was shown so far, without what steers the terminal."""
        try:
            while chunk := os.read(self._master, 65536):
                self._raw += chunk
        except OSError:  # nothing at present, or the program has ended
            pass
        return _STEERING.sub("", self._raw.decode("utf-8", "replace"))

    def shows(self, *words: str) -> str:
        """Waits until all words were shown."""
        return wait_for(
            lambda: text if all(word in (text := self.shown()) for word in words) else None,
            _SECONDS,
            f"the terminal shows {words}: {self.shown()[-2000:]}",
        )

    def ended(self) -> int:
        """Waits for the program's end and returns its exit code."""

        def over() -> tuple[int] | None:
            self.shown()  # a full terminal would hold it up
            code = self.process.poll()
            return None if code is None else (code,)

        return wait_for(over, _SECONDS, "the program's end")[0]


@contextmanager
def terminal(platform: Platform, *arguments: str, size: tuple[int, int]) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    env = clean_environment(
        {
            "TUNESMITH_ADDRESS": platform.address,
            "TUNESMITH_TOKEN": platform.token,
            "TUNESMITH_CONFIG_DIR": str(platform.root),
            "TERM": "xterm-256color",
        }
    )
    for name in ("COLUMNS", "LINES"):
        env.pop(name, None)
    process = subprocess.Popen(
        [str(BIN / "tunesmith"), *arguments],
        env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(_SECONDS)
        os.close(master)


@pytest.fixture
def run(embedded_platform: Platform) -> Iterator[Any]:
    """A run that goes on, with a curve and a log whose line would like to steer the terminal."""
    with embedded_platform.client() as client:
        begun = client.external.start(experiment="seen")
        progress = state_pb2.Progress(step=50, total_steps=100, loss=0.25, first_loss=1.0)
        client.external.renew(begun.job.name, begun.epoch, progress)
        curve = [
            records_pb2.LoggedRecord(step=step, values={"train/loss": 1 / step}) for step in range(1, 51)
        ]
        lines = [records_pb2.LoggedLine(text="a line \x1b[2Jof the log")]
        wait_for(
            lambda: client.external.write(begun.job.name, 1, records=curve, first_seq=1, lines=lines),
            _SECONDS,
            "the points are stored",
        )
        yield begun.job
        client.external.finish(begun.job.name, begun.epoch)


def test_watch_fills_the_screen_and_ctrl_c_leaves_the_job_running(
    embedded_platform: Platform, run: Any
) -> None:
    with terminal(embedded_platform, "watch", run.display_name, size=(30, 100)) as seen:
        words = seen.shows("╭─ loss", "╭─ log", "╭─ events", "50 %  step 50/100", "⠤", "of the log")
        assert "\x1b[2Jof" not in words
        assert "a line �[2Jof the log" in words
        os.killpg(seen.process.pid, signal.SIGINT)
        assert seen.ended() == 130
        assert "stopped watching; the job goes on" in seen.shown()
    with embedded_platform.client() as client:
        assert client.jobs.get(run.display_name).state == "RUNNING"


def test_a_small_terminal_gets_some_lines_and_the_end_is_told(embedded_platform: Platform, run: Any) -> None:
    with terminal(embedded_platform, "watch", run.display_name, size=(10, 50)) as seen:
        seen.shows("50 %", "loss 0.25")
        with embedded_platform.client() as client:
            client.external.finish(run.name, 1)
        assert seen.ended() == 0
        assert "╭─ loss" not in seen.shown()
        assert "SUCCEEDED" in seen.shown()
