"""Jobs for system tests, and what must be true of every finished one."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tests.support.platform import Platform
from tests.support.processes import wait_for
from tunesmith import Client, NotFound, Unavailable

TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED")


def spec(steps: int = 12, **training: Any) -> dict[str, Any]:
    """Returns a job on the tiny model; a step takes some 10 ms."""
    return {
        "experiment": "system",
        "base_model": "tiny",
        "dataset": "sums",
        "adapter": {"lora": {"r": 4, "dropout": 0.1}},
        "training": {"max_steps": steps, "learning_rate": 1e-2, "num_threads": 1, "seed": 3, **training},
    }


def job_file(path: Path, content: dict[str, Any]) -> Path:
    """Writes a job file."""
    path.write_text(yaml.safe_dump(content))
    return path


def wait_state(client: Client, name: str, *states: str, seconds: float = 180) -> Any:
    """Waits until a job is in one of the states; a terminal state that is not wanted fails at once."""

    def look() -> Any:
        job = client.jobs.get(name)
        if job.state in states:
            return job
        assert job.state not in TERMINAL, f"{job.state}: {job.proto.failure}"
        return None

    return wait_for(look, seconds, f"{name} in {' or '.join(states)}")


def wait_step(client: Client, name: str, step: int, seconds: float = 180) -> Any:
    """Waits until a job has trained so far."""

    def look() -> Any:
        job = client.jobs.get(name)
        assert job.state not in TERMINAL, f"{job.state} before step {step}: {job.proto.failure}"
        return job if job.proto.progress.step >= step else None

    return wait_for(look, seconds, f"{name} at step {step}")


def trainers(root: Path, job_id: str, epoch: int = 1) -> list[int]:
    """Returns the process ids of an attempt's ranks on the node whose data lies below `root`."""
    (path,) = root.glob(f"**/runs/{job_id}-{epoch}/agent.json")
    notes = json.loads(path.read_text())
    return [notes["pid"], *(pid for pid, _ in notes["peers"])]


def output_digest(client: Client, job: Any) -> str:
    """Returns the SHA-256 of the trained weights a job registered."""
    version = client.models.version(job.proto.model_version)
    (weights,) = [f for f in version.manifest.files if f.path.endswith(".safetensors")]
    return str(weights.sha256)


def wait_points(client: Client, name: str, number: int) -> None:
    """Waits until so many losses of a job are stored: its end waits some seconds for that, and no longer."""

    def stored() -> bool:
        with suppress(NotFound, Unavailable):  # none came yet, or the service comes back
            curve = client.metrics.series(name, ["train/loss"]).get("train/loss")
            return curve is not None and bool(curve.num_points >= number)
        return False

    wait_for(stored, 180, f"{number} losses of {name} are stored")


def check_whole(platform: Platform, job: Any, steps: int) -> None:
    """Every step's metrics are there exactly once, and the version's files are what they claim."""
    with platform.client() as client:
        wait_points(client, job.name, steps)
        series = client.metrics.series(job.name, ["train/loss"])["train/loss"]
        assert list(series.steps) == list(range(1, steps + 1))
        assert series.num_points == steps
        version = client.models.version(job.proto.model_version)
        assert version.job == job.name
        assert {f.path for f in version.manifest.files} >= {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
