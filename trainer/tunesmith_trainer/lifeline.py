"""The standard input as a lifeline: its end ends this process, even in the middle of an import.

An agent that dies leaves its fork server behind. The imports take seconds of a core, and the next agent's own
fork server would share the machine with every one that an earlier agent left.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys


def hold() -> None:
    """From now on the other end's death ends this process. Nothing may be sent to it until `release`."""
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    _ask_for_signals(True)
    gone = select.poll()
    gone.register(0, 0)
    if gone.poll(0):  # it died before
        sys.exit(0)


def release() -> None:
    """From now on the standard input is read by whoever reads it."""
    _ask_for_signals(False)


def _ask_for_signals(on: bool) -> None:
    # SIGIO comes with data and with the end; nobody handles it, so the kernel ends the process.
    flags = fcntl.fcntl(0, fcntl.F_GETFL)
    fcntl.fcntl(0, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)
