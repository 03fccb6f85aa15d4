"""The control plane under simulated faults. A failure prints its seed; `make chaos LAYER=sim SEED=…` tells
the same stories again."""

import json
import subprocess
import sys

import pytest

STORIES = 20


@pytest.mark.parametrize("seed", [1, 20261122])
def test_every_story_ends_well(seed: int) -> None:
    command = [sys.executable, "-m", "tests.faults", "--layer", "sim"]
    done = subprocess.run(
        [*command, "--seed", str(seed), "--stories", str(STORIES)],
        capture_output=True,
        text=True,
        timeout=150,
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0, f"seed {seed}:\n{done.stderr[-6000:]}"
    assert report["stories"] >= STORIES
