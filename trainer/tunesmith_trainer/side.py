"""The trainer's end of the side process (writer.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ENDING_SECONDS = 10.0


class SideProcess:
    """Starts the side process when it is first needed, and again should it die."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Be sure that it runs. To be called by the main thread: it dies with the thread that started it."""
        if self._child is not None and self._child.poll() is None:
            return
        root = str(Path(__file__).parents[1])
        path = os.environ.get("PYTHONPATH")
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tunesmith_trainer.writer", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root},
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Its answer, or None if it died."""
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except OSError:
            return None
        answer: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
        return answer

    def close(self) -> None:
        """End it; it has nothing left to do."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.close()
            child.wait(_ENDING_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            child.kill()
            child.wait()
        child.stdout.close()
