"""The control plane under simulated faults. A failure prints its seed; `make chaos LAYER=sim SEED=…` tells
the same stories again."""

import json
import subprocess
import sys

import pytest

STORIES = 24


@pytest.mark.timeout(1000)
def test_every_story_ends_well() -> None:
    command = [sys.executable, "-m", "tests.faults", "--layer", "sim", "--workers", "2", "--seed", "1"]
    done = subprocess.run([*command, "--stories", str(STORIES)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-6000:]
    report = json.loads(done.stdout)
    assert report["stories"]["jobs"] + report["stories"]["points"] >= STORIES
    assert report["stories"]["states"] >= 10 * STORIES
    assert not report["broken"]
