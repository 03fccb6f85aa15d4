"""One job from submit to a registered version, on both forms of the platform."""

import json
from pathlib import Path

import pytest

from tests.support.jobs import check_whole, job_file, output_digest, spec, wait_state, wait_step
from tests.support.platform import Platform
from tests.support.processes import wait_for


def test_a_job_trains_and_registers_a_verified_version(platform: Platform, tmp_path: Path) -> None:
    content = {**spec(24, checkpoint_every_steps=10), "sample_prompts": ["what is 1 plus 1?"]}
    done = platform.run(
        "submit", str(job_file(tmp_path / "job.yaml", content)), "--watch", "--json", seconds=300
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["state"] == "JOB_STATE_SUCCEEDED"
    assert last["progress"]["loss"] < last["progress"]["first_loss"]
    assert last["progress"]["tflops"] > 0
    assert "mfu" not in last["progress"], "a processor has no peak"
    assert int(last["progress"]["resident_bytes"]) > 1e7
    sample = last["samples"][0]
    assert sample["before"] != sample["after"]
    with platform.client() as client:
        job = client.jobs.get(last["display_name"])
        check_whole(platform, job, 24)
        assert [c.step for c in job.checkpoints()] == [24, 20, 10]
        (attempt,) = job.attempts()
        assert attempt.epoch == 1
        assert attempt.environment["device"] == "cpu"
        assert {"torch", "transformers", "python", "host", "threads"} <= set(attempt.environment)
        assert attempt.lost_seconds == job.proto.lost_seconds == 0.0
        wait_for(lambda: any("loss" in line.text for line in job.logs()), 90, "its log is stored")
        shown = platform.run("show", job.display_name)
        assert f"torch {attempt.environment['torch']}" in " ".join(shown.stdout.split())
        assert "FLOP/s" in shown.stdout
        keys = {metric.key for metric in client.metrics.list(job)}
        assert {"train/loss", "train/learning_rate", "train/grad_norm"} <= keys


def test_equal_jobs_end_with_equal_bits(platform: Platform) -> None:
    with platform.client() as client:
        made = [client.jobs.submit(spec(10)) for _ in range(2)]
        first, second = (output_digest(client, wait_state(client, job.name, "SUCCEEDED")) for job in made)
    assert first == second


def test_a_graceful_cancel_keeps_a_checkpoint(platform: Platform) -> None:
    with platform.client() as client:
        job = client.jobs.submit(spec(100_000))
        wait_step(client, job.name, 5)
        job.cancel(reason="enough")
        done = wait_state(client, job.name, "CANCELLED")
        assert done.proto.checkpoint.step >= 5
        assert [c.step for c in done.checkpoints()] == [done.proto.checkpoint.step]


def test_cancel_now_kills_at_once_and_frees_the_node(platform: Platform) -> None:
    with platform.client() as client:
        job = client.jobs.submit(spec(100_000))
        wait_step(client, job.name, 1)
        job.cancel(now=True)
        wait_state(client, job.name, "CANCELLED", seconds=50)  # a stop with a checkpoint has 60 s
        assert not any(job.name in node.jobs for node in client.nodes.list())


def test_the_shown_listings_are_json_for_programs(platform: Platform) -> None:
    for command in (
        ["list"],
        ["models", "list"],
        ["models", "bases"],
        ["datasets", "list"],
        ["nodes", "list"],
    ):
        done = platform.run(*command, "--json")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), list | dict)


@pytest.mark.distributed
def test_one_job_on_each_node_at_once(distributed_platform: Platform) -> None:
    """The smoke test of the distributed form: two agents train at the same time."""
    with distributed_platform.client() as client:
        jobs = [
            client.jobs.submit({**spec(400, checkpoint_every_steps=100), "resources": {"node": node}})
            for node in ("node-a", "node-b")
        ]
        for job in jobs:
            wait_step(client, job.name, 1, seconds=300)
        assert [client.jobs.get(job.name).state for job in jobs] == ["RUNNING", "RUNNING"]
        for job in jobs:
            done = wait_state(client, job.name, "SUCCEEDED", seconds=300)
            check_whole(distributed_platform, done, 400)
        placed = {job.attempts()[0].nodes[0] for job in jobs}
    assert placed == {"node-a", "node-b"}
