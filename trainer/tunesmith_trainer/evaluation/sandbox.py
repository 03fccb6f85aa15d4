"""What users wrote runs here: regular expressions, expressions, JSON schemas, in a process that can be ended.

The process answers a line of JSON for each line it is given. It has a limit of memory, and whoever asks has a
limit of time: a search that takes longer costs the process, not the evaluation.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SECONDS = 1.0
_START_SECONDS = 30.0
_MEMORY_BYTES = 512 * 1024 * 1024
_MOST_BYTES = 16 * 1024 * 1024
_PR_SET_PDEATHSIG = 1


class Sandbox:
    """The end that asks."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """`{"value": number}`, or `{"error": why}`."""
        data = json.dumps(request).encode() + b"\n"
        if len(data) > _MOST_BYTES:
            return {"error": "the answer is too long"}
        child = self._child or self._start()
        assert child.stdin is not None
        try:
            child.stdin.write(data)
            child.stdin.flush()
            answer = self._line(child, SECONDS)
        except OSError:
            answer = None
        if answer is None:
            self.close()
            return {"error": f"it took longer than {SECONDS:g} s"}
        return answer

    def close(self) -> None:
        """Ends the process."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):  # what was not written yet finds nobody
                        stream.close()

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        child = subprocess.Popen(
            [sys.executable, "-m", "tunesmith_trainer.evaluation.sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))},
        )
        self._child = child
        if self._line(child, _START_SECONDS) is None:  # it says that it is ready: imports count for nobody
            self.close()
            raise OSError("the process for expressions does not start")
        return child

    def _line(self, child: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], seconds)
        line = child.stdout.readline() if ready else b""
        answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return answer


def main() -> int:
    """Answer until the input ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is meant for the trainer, which then ends our input
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from tunesmith_trainer.evaluation import schema  # here: an import counts for nobody's time

    environment = ImmutableSandboxedEnvironment()
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        try:
            answer: dict[str, float | str] = _answer(environment, schema.wrong, json.loads(line))
        except MemoryError:
            answer = {"error": "it needs too much memory"}
        except Exception as error:  # whatever users write may raise
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


def _answer(
    environment: Any, check: Callable[[str, str | None], str | None], request: Mapping[str, Any]
) -> dict[str, float | str]:
    if "schema" not in request:
        return {"value": _value(environment, request)}
    wrong = check(request["schema"], request.get("instance"))
    return {"value": 1.0} if wrong is None else {"wrong": wrong}


def _value(environment: Any, request: Mapping[str, Any]) -> float:
    if "pattern" in request:
        search = re.fullmatch if request["full"] else re.search
        return float(search(request["pattern"], request["text"]) is not None)
    compiled = environment.compile_expression(request["expression"], undefined_to_none=False)
    value = float(compiled(**request["values"]))
    if value - value != 0:
        raise ValueError("it is no finite number")
    return value


if __name__ == "__main__":
    sys.exit(main())
