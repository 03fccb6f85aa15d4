"""Pause, resume, fork, move and drain on the platform: whatever is done to a job, its bits stay the same."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import check_whole, output_digest, spec, wait_points, wait_state, wait_step
from tests.support.platform import Platform
from tests.support.processes import wait_for
from tunesmith import Client, FailedPrecondition
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.cli import main

STEPS = 400
COURSE = spec(STEPS, checkpoint_every_steps=100, keep_checkpoints=10)


@pytest.fixture(scope="module")
def undisturbed(embedded_platform: Platform) -> Any:
    """The course when nothing happens to it."""
    with embedded_platform.client() as client:
        return wait_state(client, client.jobs.submit(COURSE).name, "SUCCEEDED")


def weights(platform: Platform, job: Any) -> str:
    """Digest of the weights a job made."""
    with platform.client() as client:
        return output_digest(client, client.jobs.get(job.name))


def fork_once_there(client: Client, job: Any, step: int) -> Any:
    """Forks a job from a checkpoint as soon as that is committed."""

    def attempt() -> Any:
        try:
            return client.jobs.get(job.id).fork(step=step)
        except FailedPrecondition as error:
            if error.reason != "CHECKPOINT_MISSING":
                raise
            return None

    return wait_for(attempt, 180, f"a checkpoint at step {step}")


def test_a_paused_job_and_its_fork_end_with_the_bits_of_an_undisturbed_one(
    embedded_platform: Platform, undisturbed: Any
) -> None:
    platform, expected = embedded_platform, weights(embedded_platform, undisturbed)
    with platform.client() as client:
        job = client.jobs.submit(COURSE)
        wait_step(client, job.name, 100)
        assert platform.run("pause", job.id, "--wait").returncode == 0
        rests = client.jobs.get(job.id)
        assert rests.state == "PAUSED"
        point = rests.proto.checkpoint.step
        assert point >= 100, "a pause saves what was done"
        fork = fork_once_there(client, job, 100)
        job.resume()
        done = wait_state(client, job.name, "SUCCEEDED")
        assert [attempt.resumed_step for attempt in done.attempts()] == [point, 0], "not a step is done twice"
        assert output_digest(client, done) == expected
        check_whole(platform, done, STEPS)
        forked = wait_state(client, fork.name, "SUCCEEDED")
        assert output_digest(client, forked) == expected
        wait_points(client, fork.name, STEPS - 100)
        own = forked.series("train/loss")["train/loss"]
        joined = forked.series("train/loss", lineage=True)["train/loss"]
        parent = done.series("train/loss")["train/loss"]
        assert list(own.steps) == list(range(101, STEPS + 1))
        assert list(joined.steps) == list(parent.steps)
        assert list(joined.values) == list(parent.values)


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Flips one bit of a file for a while."""
    good = path.read_bytes()
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        yield
    finally:
        path.write_bytes(good)
        path.chmod(mode)


def test_a_fork_of_a_damaged_checkpoint_fails_and_says_so(
    embedded_platform: Platform, undisturbed: Any
) -> None:
    platform = embedded_platform
    with platform.client() as client:
        job = client.jobs.get(undisturbed.id)
        point = job.checkpoints()[0]
        blobs = platform.root / "data" / "blobs" / "sha256"
        with damaged(blobs / point.digest[:2] / point.digest):
            done = platform.run("fork", job.id, "--step", str(point.step))
            assert done.returncode == 4, done.stderr
            assert "CHECKPOINT_DAMAGED" in done.stderr
            assert "remedy" in done.stderr
        whole = job.fork(step=point.step, overrides=["training.max_steps=500", "labels.team=a"]).validated()
        assert whole.state != "FAILED"
        assert (whole.proto.spec.training.max_steps, whole.proto.spec.labels["team"]) == (500, "a")
        whole.cancel(now=True)


@pytest.mark.distributed
def test_a_job_moves_and_is_drained_between_two_nodes_and_keeps_its_bits(
    distributed_platform: Platform, embedded_platform: Platform, undisturbed: Any
) -> None:
    platform, expected = distributed_platform, weights(embedded_platform, undisturbed)
    with platform.client() as client:
        nodes = {node.node_id for node in client.nodes.list()}
        job = client.jobs.submit(COURSE)
        wait_step(client, job.name, 20, seconds=300)
        (first,) = job.attempts()[0].nodes
        (other,) = nodes - {first}
        moved = platform.run("move", job.id, other, "--wait", seconds=300)
        assert moved.returncode == 0, moved.stderr
        wait_step(client, job.name, 200, seconds=300)
        drained = platform.run("nodes", "drain", other, "--wait", seconds=300)
        assert drained.returncode == 0, drained.stderr
        assert client.nodes.get(other).state == nodes_pb2.NODE_STATE_CORDONED
        try:
            done = wait_state(client, job.name, "SUCCEEDED", seconds=300)
        finally:
            client.nodes.uncordon(other)
        assert [list(attempt.nodes) for attempt in done.attempts()] == [[first], [other], [first]]
        steps_begun = [attempt.resumed_step for attempt in done.attempts()]
        assert steps_begun == sorted(steps_begun, reverse=True)
        assert steps_begun[1] >= 20
        assert steps_begun[0] >= 200
        check_whole(platform, done, STEPS)
        assert output_digest(client, done) == expected


def test_the_verbs_stand_in_rest_with_their_methods(embedded_platform: Platform) -> None:
    with embedded_platform.client() as client, embedded_platform.rest() as rest:
        job = client.jobs.submit(spec(100_000))
        path = f"/api/v1/{job.name}"
        changed = rest.patch(
            path, json={"priority": 7, "labels": {"team": "a"}, "deadlines": {"run": "3600s"}}
        )
        assert changed.json()["job"]["spec"]["resources"]["priority"] == 7, changed.text
        stale = rest.patch(path, json={"priority": 8, "revision": job.proto.revision})
        assert (stale.status_code, stale.json()["reason"]) == (409, "REVISION_STALE")
        late = rest.post(f"{path}:pause", json={"deadline": "-1s"})
        assert (late.status_code, late.json()["field"]) == (400, "deadline")
        early = rest.delete(path)
        assert (early.status_code, early.json()["reason"]) == (409, "STATE_CONFLICT")
        mask = rest.post(f"{path}:fork", json={"spec": {"method": "METHOD_SFT"}, "update_mask": "method"})
        assert (mask.status_code, mask.json()["reason"]) == (400, "FIELD_FROZEN")
        rest.post(f"{path}:cancel", json={"mode": "CANCEL_MODE_NOW"})
        wait_state(client, job.name, "CANCELLED")
        assert rest.delete(path, params={"request_id": "d"}).status_code == 200
        assert rest.delete(path, params={"request_id": "d"}).status_code == 200, "the first answer"
        assert rest.get(path).status_code == 404


def test_every_command_about_jobs_and_nodes_works_and_speaks_json(
    embedded_platform: Platform,
    undisturbed: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TUNESMITH_ADDRESS", embedded_platform.address)
    monkeypatch.setenv("TUNESMITH_TOKEN", embedded_platform.token)

    def run(*arguments: str, code: int = 0) -> Any:
        found = main([*arguments, "--json"])
        said = capsys.readouterr()
        assert found == code, said.err
        return json.loads(said.out) if not code else said.err

    name = undisturbed.display_name
    assert [attempt["epoch"] for attempt in run("attempts", name)] == ["1"]
    assert run("events", name)[0]["created"]["spec"]["base_model"] == "tiny"
    listed = run("checkpoints", "list", name)
    step = listed[0]["step"]
    assert run("checkpoints", "pin", name, step)["pinned"]
    assert not run("checkpoints", "unpin", name, step)["pinned"]
    assert "no checkpoint at step 7" in run("checkpoints", "pin", name, "7", code=1)
    assert run("update", name, "--label", "team=a")["spec"]["labels"] == {"team": "a"}
    for verb in ("pause", "resume", "checkpoint", "cancel"):
        assert "the job is SUCCEEDED" in run(verb, name, code=1)
    assert "there is no node nowhere" in run("move", name, "nowhere", code=3)
    assert run("explain", name)["state"] == "JOB_STATE_SUCCEEDED"
    assert "adapter.lora.r" in run("fork", name, "-s", "adapter.lora.r=2", code=1)
    assert "training.learning_rate" in run("fork", name, "-s", "training.lerning_rate=2", code=1)
    node = run("nodes", "list")[0]["node_id"]
    for verb, state in (("cordon", "CORDONED"), ("drain", "CORDONED"), ("uncordon", "READY")):
        assert run("nodes", verb, node)["state"] == f"NODE_STATE_{state}"
    assert run("quota", "set", "--max-running-jobs", "9")["max_running_jobs"] == 9
    assert run("quota", "show")["max_running_jobs"] == 9
    assert "max_running_jobs" in run("quota", "set", "--max-running-jobs", "0", code=1)
    run("quota", "set")
