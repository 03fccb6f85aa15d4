"""Rivals from PyPI, each in an environment of its own below the user's cache; made at the first use."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

_CACHE = Path(os.environ.get("TUNESMITH_BENCH_CACHE", Path.home() / ".cache" / "tunesmith-bench"))
PACKAGES = {"mlflow": "mlflow==3.18.0", "trackio": "trackio==0.43.0", "tensorboard": "tensorboardX==2.6.4"}
_LONGEST_SECONDS = 900


def run(name: str, *arguments: str) -> dict[str, Any]:
    """Runs `bench/rivals/{name}.py` with the rival's own Python and returns its last line."""
    script = Path(__file__).with_name(f"with_{name}.py")
    done = subprocess.run(
        [str(python(name)), str(script), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=_LONGEST_SECONDS,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def python(name: str) -> Path:
    """Returns the Python of a rival's environment."""
    folder = _CACHE / PACKAGES[name].replace("==", "-")
    if not (folder / "ready").exists():
        sys.stdout.write(f"installing {PACKAGES[name]} into {folder}\n")
        sys.stdout.flush()
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", PACKAGES[name]]
        subprocess.run(pip, check=True, stdout=subprocess.DEVNULL)
        (folder / "ready").touch()
    return folder / "bin" / "python"
