"""What a job would take, told before it is submitted: through REST, the SDK and the command line."""

import json
from pathlib import Path
from typing import Any

from tests.support.jobs import job_file, spec, wait_state
from tests.support.platform import Platform

PATH = "/api/v1/projects/default/jobs:quote"
GOOD = "base_model: tiny\ndataset: sums\ntraining:\n  num_epochs: 3\n"


def quoted(platform: Platform, **body: Any) -> dict[str, Any]:
    """Returns the quote of a file or a spec."""
    with platform.rest() as rest:
        answer = rest.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def mistakes(platform: Platform, file: str) -> dict[str, dict[str, Any]]:
    """Returns what is wrong in a file, by field."""
    return {found["field"]: found for found in quoted(platform, file=file)["mistakes"]}


def test_a_quote_tells_memory_steps_time_nodes_and_creates_nothing(embedded_platform: Platform) -> None:
    with embedded_platform.client() as client:
        done = client.jobs.submit({**spec(20), "experiment": "paced"})
        wait_state(client, done.name, "SUCCEEDED")
        before = {job.name for job in client.jobs.list()}
        quote = client.jobs.quote({"base_model": "tiny", "dataset": "sums", "training": {"num_epochs": 3}})
        doubled = client.jobs.quote({"base_model": "tiny", "dataset": "sums", "training": {"num_epochs": 6}})
        assert {job.name for job in client.jobs.list()} == before
    assert not quote.mistakes
    assert quote.spec.training.learning_rate == 2e-4, "defaults are filled in"
    assert (quote.time.num_rows, quote.time.rows_per_step, quote.time.num_steps) == (48, 4, 36)
    assert quote.time.num_jobs >= 1
    seconds = quote.time.training.ToTimedelta().total_seconds()
    assert seconds > 0
    assert abs(doubled.time.training.ToTimedelta().total_seconds() / seconds - 2) < 0.5
    assert quote.memory.process_bytes > quote.memory.weights_bytes > 0
    assert [node.enough_memory for node in quote.nodes] == [True]


def test_full_training_needs_more_memory_and_its_own_past(embedded_platform: Platform) -> None:
    lora = quoted(embedded_platform, file=GOOD)
    full = quoted(embedded_platform, file=GOOD + "adapter: {full: {}}\n")
    weights = int(full["memory"]["weights_bytes"])
    assert int(full["memory"]["process_bytes"]) >= int(lora["memory"]["process_bytes"]) + 2 * weights
    assert "training" not in full["time"], "a run with adapters says nothing of one without"


def test_a_quote_says_what_keeps_a_job_from_starting(embedded_platform: Platform) -> None:
    answer = quoted(embedded_platform, file=GOOD + "resources: {gpus_per_node: 2}\n")
    assert answer["rule"] == "UNSATISFIABLE"
    assert [node["rule"] for node in answer["nodes"]] == ["GPUS"]
    assert answer["change"]["text"] == "set resources.gpus_per_node to 0"


def test_mistakes_are_part_of_the_answer_with_their_lines(embedded_platform: Platform) -> None:
    file = "base_model: tiny\ndataset: nope\ntraining:\n  learning_rate: 1e-3\n"
    answer = quoted(embedded_platform, file=file)
    (wrong,) = answer["mistakes"]
    assert (wrong["field"], wrong["line"]) == ("dataset", 2)
    assert "spec" not in answer
    assert json.loads(answer["content"])["training"] == {"learning_rate": 0.001}
    assert answer["nodes"], "the rest is told all the same"
    found = mistakes(embedded_platform, "training:\n  learning_rat: 1\n  seed: x\n")
    assert (found["training.learning_rat"]["line"], found["training.seed"]["line"]) == (2, 3)
    assert found["base_model"]["line"] == 0
    contrary = mistakes(embedded_platform, GOOD + "  eval_every_steps: 5\n")
    assert contrary["training.eval_fraction"]["problem"].startswith("is 0, but")


def test_a_file_that_means_harm_is_a_mistake_and_nothing_else(embedded_platform: Platform) -> None:
    aliases = [f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(9)]
    many = "a: &a [" + "1," * 5000 + "1]\nb: [*a, *a, *a, *a, *a]\n"
    bombs = ["a: &a [x, x]\n" + "\n".join(aliases), "[" * 5000, "x: &a [*a]", many, "a: [", "- x", "{1: 2"]
    for bomb in bombs:
        answer = quoted(embedded_platform, file=bomb)
        assert answer["mistakes"], bomb[:40]
        assert "spec" not in answer
    with embedded_platform.rest() as rest:
        for body in ({}, {"file": GOOD, "spec": {}}, {"file": "x" * 300_000}):
            refused = rest.post(PATH, json=body)
            assert (refused.status_code, refused.json()["reason"]) == (400, "FIELD_INVALID")


def test_the_command_line_quotes_too(embedded_platform: Platform, tmp_path: Path) -> None:
    file = job_file(tmp_path / "job.yaml", {"base_model": "tiny", "dataset": "sums"})
    done = embedded_platform.run("submit", str(file), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "12 steps of 4 rows" in done.stdout
    refused = embedded_platform.run("submit", str(file), "--dry-run", "--set", "dataset=nope")
    assert refused.returncode == 2
    assert "there is no dataset nope" in refused.stderr


def test_the_schema_of_the_job_file_has_help_limits_and_choices(embedded_platform: Platform) -> None:
    with embedded_platform.rest() as rest:
        schema = rest.get("/api/v1/job-schema.json").json()
    training = schema["properties"]["training"]["properties"]
    assert training["learning_rate"]["exclusiveMinimum"] == 0
    assert training["learning_rate"]["description"].startswith("Peak learning rate")
    assert [choice["const"] for choice in training["lr_scheduler"]["oneOf"]] == [
        "cosine",
        "linear",
        "constant",
    ]
    assert schema["properties"]["adapter"]["maxProperties"] == 1
