"""Starts trainers by fork from one process that has imported torch: 0.1 s each where a start costs 5 s.

What a child runs is `worker.main`, the entry of the real process. One JSON request a line, one answer a line.
A request may set limits of the process (of memory: beyond what it has), or a trap: where the child sends
itself SIGKILL or SIGTERM.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from tunesmith_trainer import loop, slots, standby, worker
from tunesmith_trainer.checkpoint import Keeper

SNAPSHOT, CHECKPOINT = "SNAPSHOT", "CHECKPOINT"  # traps besides the phases


def child(request: dict[str, object]) -> int:
    os.setsid()
    for option, limit in (("file_size_limit", resource.RLIMIT_FSIZE), ("memory_limit", resource.RLIMIT_AS)):
        if value := request.get(option):
            present = (
                0 if limit == resource.RLIMIT_FSIZE else int(Path("/proc/self/statm").read_text().split()[0])
            )
            resource.setrlimit(
                limit, (present * resource.getpagesize() + int(str(value)), resource.RLIM_INFINITY)
            )
    for option, number in (("die_at", signal.SIGKILL), ("stop_at", signal.SIGTERM)):
        if place := request.get(option):
            set_trap(str(place), int(str(request.get("visit", 1))), number)
    return worker.main([str(request["run"]), "--rank", str(request.get("rank", 0))])


def set_trap(place: str, visit: int, number: signal.Signals) -> None:
    """Send itself a signal at the `visit`-th pass of `place`: a phase, or one of the two above."""
    left = [visit]

    def pass_by(here: str) -> None:
        if here == place:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)

    enter, invalidate, announce = loop.Loop._enter, slots.invalidate, Keeper._announce

    def entering(self: Any, phase: Any) -> None:
        pass_by(phase)
        enter(self, phase)

    def invalidating(memory: Any, at: int) -> None:
        invalidate(memory, at)
        half = len(memory) // 4
        memory[at + 4096 : at + half] = bytes(half - 4096)  # half of it overwritten
        pass_by(SNAPSHOT)

    def announcing(self: Any, *arguments: Any) -> None:
        pass_by(CHECKPOINT)
        announce(self, *arguments)

    loop.Loop._enter = entering  # type: ignore[method-assign]
    slots.invalidate = invalidating
    Keeper._announce = announcing  # type: ignore[method-assign, assignment]


def main() -> None:
    torch.set_num_threads(1)  # threads of OpenMP would not survive the fork
    standby.warm_up()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, code = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(code)
        elif (answer := os.fork()) == 0:
            os._exit(child(request))
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
