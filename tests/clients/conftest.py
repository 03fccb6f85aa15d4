"""A platform for clients in other languages, and their npm packages."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.platform import Platform, embedded


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with embedded(tmp_path_factory.mktemp("clients")) as running:
        running.load_inputs()
        yield running


@pytest.fixture(scope="session")
def npm() -> Callable[..., None]:
    """Runs npm in a folder, whose packages it installs first, exactly as locked."""
    program = shutil.which("npm")
    if program is None:
        pytest.skip("no npm here")

    def run(folder: Path, *arguments: str) -> None:
        installed = folder / "node_modules" / ".package-lock.json"
        if (
            not installed.exists()
            or installed.stat().st_mtime < (folder / "package-lock.json").stat().st_mtime
        ):
            _check(program, "ci", "--no-audit", "--no-fund", folder=folder)
            installed.touch()
        if arguments:
            _check(program, *arguments, folder=folder)

    return run


def _check(*command: str, folder: Path) -> None:
    # `buf` comes with the Python tools: npm's package lacks locks for some systems.
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
