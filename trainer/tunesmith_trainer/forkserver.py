"""Trainers by fork from one process that has its imports done: 0.1 s each where a start costs 5 s.

Commands come on standard input, a line each: `fork` makes a child that waits, answered by `forked PID`;
`begin PID RANK FOLDER` lets it go. `ended PID CODE` tells of each end. The end of the input ends this process
and every child that still waits; children at work go on.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tunesmith_trainer import lifeline, standby

Run = Callable[[int, Path], int]


def serve(run: Run) -> int:
    """Import, say `ready`, and serve until the end of the input; `run(rank, folder)` is what a child does."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads of OpenMP would not survive the fork
    standby.warm_up()
    lifeline.release()
    return _Server(run, num_threads).serve()


class _Server:
    def __init__(self, run: Run, num_threads: int) -> None:
        self._run, self._num_threads = run, num_threads
        self._gates: dict[int, int] = {}  # child that waits -> descriptor its line is written to
        self._wake, told = os.pipe()
        for descriptor in (self._wake, told):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def serve(self) -> int:
        _say("ready")
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if self._wake in ready:
                    os.read(self._wake, 4096)
                    _reap()
                if 0 not in ready:
                    continue
                data = os.read(0, 65536)
                if not data:
                    return 0
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._obey(os.fsdecode(line))

    def _obey(self, line: str) -> None:
        word, _, more = line.partition(" ")
        if word == "fork":
            self._fork()
        elif word == "begin":
            pid, _, assigned = more.partition(" ")
            gate = self._gates.pop(int(pid), -1)
            if gate >= 0:
                os.write(gate, os.fsencode(assigned))
                os.close(gate)

    def _fork(self) -> None:
        waiting, gate = os.pipe()
        leads, leading = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                os.setsid()
                for descriptor in (gate, leads, leading):
                    os.close(descriptor)
                code = self._child(waiting)
            finally:
                os._exit(code)
        for descriptor in (waiting, leading):
            os.close(descriptor)
        os.read(leads, 1)  # its end: the child leads its session, so that its group can be killed
        os.close(leads)
        self._gates[pid] = gate
        _say(f"forked {pid}")

    def _child(self, waiting: int) -> int:
        """Becomes a trainer as one started by itself is, and waits for its line."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1):  # both belong to the server
            os.dup2(nothing, descriptor)
        for gate in self._gates.values():  # a sibling that waits must see the server's end
            os.close(gate)
        with os.fdopen(waiting, "rb") as gate_file:
            rank, _, folder = os.fsdecode(gate_file.read()).partition(" ")
        if not folder:
            return 0
        torch.set_num_threads(self._num_threads)
        code = self._run(int(rank), Path(folder))
        sys.stdout.flush()
        sys.stderr.flush()
        return code


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say(f"ended {pid} {os.waitstatus_to_exitcode(status)}")


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())
