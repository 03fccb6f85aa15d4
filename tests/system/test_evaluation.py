"""Evaluations and exports as jobs of the platform, by command line, SDK and REST; and over kills."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import spec, trainers, wait_state, wait_step
from tests.support.platform import Platform
from tests.support.processes import wait_for
from tunesmith import Client


def tuned(client: Client) -> Any:
    """A finished training job, its version in `system`."""
    job = client.jobs.submit(spec(30, learning_rate=3e-2, checkpoint_every_steps=15))
    return wait_state(client, job.name, "SUCCEEDED")


def said(platform: Platform, *words: str, seconds: float = 300) -> Any:
    """What a command prints as JSON."""
    done = platform.run(*words, "--json", seconds=seconds)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_models_are_evaluated_compared_and_exported_by_command(platform: Platform) -> None:
    with platform.client() as client:
        job = tuned(client)
        version = job.proto.model_version
        number = version.rpartition("/")[2]
        made = said(
            platform,
            *("evaluate", "tiny", f"system@{number}", "--dataset", "sums", "--follow"),
            *("-k", "perplexity", "-k", "exact_match", "-k", "regex=[0-9]", "--max-new-tokens", "8"),
        )
        assert [target["name"].rpartition("/")[2] for target in made["targets"]] == ["tiny", number]
        scores = {(score["target_index"], score["metric"]): score for score in made["scores"]}
        assert scores[1, "perplexity"]["value"] < scores[0, "perplexity"]["value"]
        assert scores[1, "perplexity"]["ci_low"] < scores[1, "perplexity"]["value"]
        better = next(each for each in made["comparisons"] if each["metric"] == "perplexity")
        assert better["wins"] > better["losses"]
        evaluation = made["evaluation_id"]
        assert [
            each["evaluation_id"]
            for each in said(platform, "evaluations", "list", "--target", f"system@{number}")
        ] == [evaluation]
        assert said(platform, "evaluations", "show", evaluation)["digest"] == made["digest"]
        rows = said(
            platform,
            "evaluations",
            "samples",
            evaluation,
            "--metric",
            "perplexity",
            "--order",
            "difference",
            "-n",
            "5",
        )
        assert len(rows) == 5
        assert len(rows[0]["answers"]) == 2
        compared = said(platform, "evaluations", "compare", evaluation)
        assert compared["comparisons"] == made["comparisons"]
        shown = platform.run("evaluations", "show", evaluation)
        assert "perplexity ↓" in shown.stdout
        assert "BESIDE tiny" in shown.stdout
        assert f"system@{number}" in platform.run("evaluations", "samples", evaluation, "-n", "1").stdout
        with platform.rest() as rest:
            found = rest.get(f"/api/v1/projects/default/evaluations/{evaluation}").json()
            assert found["evaluation"]["digest"] == made["digest"]
            page = rest.get(f"/api/v1/projects/default/evaluations/{evaluation}/samples?page_size=2").json()
            assert len(page["samples"]) == 2
        keys = {"evaluation/exact_match/0", "evaluation/perplexity/1"}
        wait_for(
            lambda: keys <= {metric.key for metric in client.metrics.list(client.jobs.get(evaluation))},
            90,
            "the evaluation's metrics are stored",
        )
        converted = said(
            platform,
            *("convert", f"job:{job.display_name}@15", "--model", "merged", "--format", "merged", "--follow"),
        )
        merged = client.models.version(converted["model_version"])
        assert merged.manifest.properties["format"] == "merged"
        assert merged.manifest.properties["step"] == "15"
        assert merged.dataset_version == job.proto.dataset.name, "what it was trained on"


def slow(client: Client, dataset: str = "sums") -> Any:
    """An evaluation of a base model that takes some seconds."""
    return client.evaluations.submit(
        "tiny",
        dataset,
        ["exact_match"],
        generation={"max_new_tokens": 40},
        settings={"batch_size": 1, "num_threads": 1},
    )


@pytest.fixture(scope="module")
def undisturbed(embedded_platform: Platform) -> str:
    """Digest of what an evaluation leaves that nobody disturbed."""
    with embedded_platform.client() as client:
        done = wait_state(client, slow(client).name, "SUCCEEDED")
        return str(client.evaluations.get(done.proto.evaluation).digest)


def test_a_killed_trainer_goes_on_where_it_was(embedded_platform: Platform, undisturbed: str) -> None:
    platform = embedded_platform
    with platform.client() as client:
        job = slow(client)
        wait_step(client, job.name, 4)
        os.kill(trainers(platform.root, job.id)[0], signal.SIGKILL)
        done = wait_state(client, job.name, "SUCCEEDED")
        second, first = done.attempts()
        assert (second.epoch, first.epoch) == (2, 1)
        assert second.resumed_step >= 4
        assert second.resumed_from == "snapshot"
        assert client.evaluations.get(done.proto.evaluation).digest == undisturbed


def test_a_paused_evaluation_goes_on_from_its_checkpoint(
    embedded_platform: Platform, undisturbed: str
) -> None:
    with embedded_platform.client() as client:
        job = slow(client)
        wait_step(client, job.name, 2)
        job.pause()
        paused = wait_state(client, job.name, "PAUSED")
        assert paused.proto.checkpoint.step >= 2
        job.resume()
        done = wait_state(client, job.name, "SUCCEEDED")
        assert done.attempts()[0].resumed_step >= paused.proto.checkpoint.step
        assert client.evaluations.get(done.proto.evaluation).digest == undisturbed


@pytest.mark.distributed
def test_a_registry_killed_over_an_output_enters_it_once(distributed_platform: Platform) -> None:
    platform = distributed_platform
    with platform.client() as client:
        job = slow(client)
        wait_step(client, job.name, 1)
        platform.processes["registry"].kill()  # away when the output is announced
        wait_state(client, job.name, "FINALIZING")
        platform.processes["registry"].start()
        killed = False

        def look() -> bool:
            nonlocal killed
            if not killed and client.jobs.get(job.name).state == "FINALIZING":
                killed = platform.processes["registry"].alive()
                platform.processes["registry"].kill()  # and again while it comes back to it
                platform.processes["registry"].start()
            return client.jobs.get(job.name).state == "SUCCEEDED"

        wait_for(look, 240, "the evaluation is entered")
        found = [each for each in client.evaluations.list(target="tiny") if each.job == job.name]
        assert len(found) == 1


def test_targets_that_are_not_there_fail_the_job_with_every_name(
    embedded_platform: Platform, tmp_path: Path
) -> None:
    done = embedded_platform.run("evaluate", "none", "system@99", "-d", "sums", "-k", "exact_match")
    assert done.returncode == 4
    assert "none" in done.stderr
    wrong = embedded_platform.run("evaluate", "tiny", "-d", "sums", "-k", "telepathy")
    assert wrong.returncode == 1
    assert "perplexity" in wrong.stderr, "what there is is named"
