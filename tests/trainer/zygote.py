"""Starts trainers by fork from one process that has imported torch: 0.1 s each where a start costs 5 s.

What a child runs is `worker.main`, the entry of the real process. One JSON request a line, one answer a line.
"""

from __future__ import annotations

import json
import os
import resource
import sys

import torch

from tunesmith_trainer import standby, worker


def child(request: dict[str, object]) -> int:
    os.setsid()
    if limit := request.get("file_size_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(str(limit)), resource.RLIM_INFINITY))
    return worker.main([str(request["run"])])


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
