"""Processes that check blocks of JSON lines beside this one (`worker.py` is what they run)."""

import fcntl
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO, cast

from tunesmith_registry.data import blocks, worker
from tunesmith_registry.data.checking import Checked, Rules

_PIPE_BYTES = 1 << 20  # what Linux allows everybody; a block is two turns of it, not thirty
_SET_PIPE_BYTES = getattr(fcntl, "F_SETPIPE_SZ", None)


class Worker:
    """A process that checks blocks, and two threads that speak with it: it has its next block before the
    answer about the last is read, so it never waits for this process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", worker.__name__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._to, self._from = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        for pipe in (self._to, self._from):
            if _SET_PIPE_BYTES is not None:
                with suppress(OSError):
                    fcntl.fcntl(pipe, _SET_PIPE_BYTES, _PIPE_BYTES)
        self._sending, self._receiving = (
            ThreadPoolExecutor(1, f"import-{name}") for name in ("sends", "hears")
        )

    def __enter__(self) -> "Worker":
        return self

    def check(self, block: blocks.Block, rules: Rules) -> "Future[Checked]":
        """Asks the process to check a block; answers come in the order of the blocks."""
        sent = self._sending.submit(worker.send_block, self._to, block, rules)
        return self._receiving.submit(self._answer, sent)

    def _answer(self, sent: "Future[None]") -> Checked:
        sent.result()
        return worker.receive(self._from)

    def __exit__(self, *_: object) -> None:
        for threads in (self._receiving, self._sending):
            threads.shutdown(wait=False, cancel_futures=True)
        self._process.kill()
        self._process.wait()
        for threads in (self._sending, self._receiving):
            threads.shutdown()
        for pipe in (self._to, self._from):
            with suppress(OSError):
                pipe.close()
