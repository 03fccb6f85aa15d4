"""A Node.js client with stubs from proto/ alone drives a whole job."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.platform import Platform

FOLDER = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def built(npm: Callable[..., None]) -> Path:
    """Generates the stubs, checks the program's types against them, compiles it."""
    npm(FOLDER, "run", "build")
    return FOLDER / "dist" / "drive.js"


def _drive(program: Path, platform: Platform, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["node", str(program), platform.address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.node
def test_node_submits_a_job_follows_it_to_its_end_and_reads_its_curve(
    built: Path, platform: Platform
) -> None:
    done = _drive(built, platform, platform.token, "tiny", "sums", "12")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["succeeded"], said
    assert said["steps"] == list(range(1, 13))
    assert said["last_loss"] < said["first_loss"]
    assert said["states"][-1] == "SUCCEEDED"
    assert said["model_version"] == "projects/default/models/node/versions/1"
    with platform.client() as client:
        assert client.jobs.get(said["job"]).proto.spec.labels["client"] == "node"


@pytest.mark.node
def test_node_is_told_of_a_wrong_token_and_a_wrong_field(built: Path, platform: Platform) -> None:
    done = _drive(built, platform, "not-a-token", "tiny", "sums")
    assert (done.returncode, done.stderr.split(":")[1]) == (1, " UNAUTHENTICATED")
    done = _drive(built, platform, platform.token, "a/b", "sums")
    assert done.returncode == 1
    assert "INVALID_ARGUMENT: spec.base_model" in done.stderr
