"""Programs of one's own, as real processes that record runs at a platform."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.platform import Platform
from tests.support.processes import clean_environment
from tunesmith import Client

_SECONDS = 60


class Programs:
    """Starts programs that record runs, in a folder of their own."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self.platform, self.folder = platform, folder

    def start(self, code: str, address: str = "") -> subprocess.Popen[str]:
        """Starts a program; what it prints comes back."""
        env = clean_environment(
            {
                "TUNESMITH_ADDRESS": address or self.platform.address,
                "TUNESMITH_TOKEN": self.platform.token,
                "TUNESMITH_CONFIG_DIR": str(self.folder),
                "TUNESMITH_RUNS_DIR": str(self.folder / "runs"),
            }
        )
        head = "import sys, tunesmith\ndef say(*words): print(*words, flush=True)\n"
        return subprocess.Popen(
            [sys.executable, "-c", head + code],
            env=env,
            cwd=self.folder,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, code: str, address: str = "") -> tuple[int, str, str]:
        """Runs a program to its end; returns exit code, output and errors."""
        with self.start(code, address) as program:
            out, err = program.communicate(timeout=_SECONDS)
        return program.returncode, out, err

    def sync(self, *options: str) -> list[dict[str, Any]]:
        """Runs `tunesmith sync` on all that is left."""
        done = self.platform.run("sync", str(self.folder / "runs"), "--json", *options)
        assert done.returncode in (0, 1), done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def left(self) -> list[Path]:
        """Returns the folders that are left."""
        return sorted((self.folder / "runs").glob("*"))


def losses(client: Client, name: str, key: str = "train/loss") -> tuple[list[int], list[float]]:
    curve = client.metrics.series(name, [key])[key]
    return [int(step) for step in curve.steps], [float(value) for value in curve.values]
