"""The command line, against a real gRPC server."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.small_server import TOKEN, SmallServer
from tunesmith import profile
from tunesmith.api.jobs.v1 import jobs_pb2, state_pb2
from tunesmith.cli import COMMANDS, main

GOOD = "experiment: demo\nbase_model: tiny\ndataset: chat\n"
LOST = state_pb2.Failure(
    failure_class=state_pb2.FAILURE_CLASS_INVALID_INPUT,
    reason="DATASET_NOT_FOUND",
    message="there is no dataset chat",
    remedy="`tunesmith datasets list` lists them",
)


@pytest.fixture
def connected(server: SmallServer) -> SmallServer:
    profile.save(profile.Profile(address=server.address, token=TOKEN))
    return server


@pytest.fixture
def job_file(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD)
    return str(path)


def _queued(job: jobs_pb2.Job) -> None:
    job.state = state_pb2.JOB_STATE_QUEUED


def _rejected(job: jobs_pb2.Job) -> None:
    job.state = state_pb2.JOB_STATE_FAILED
    job.terminal = True
    job.failure.CopyFrom(LOST)


def test_the_help_names_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name}" in out for name in COMMANDS)
    assert "130 interrupted" in " ".join(out.split())


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert "Usage: tunesmith" in capsys.readouterr().out


def test_a_mistyped_command_is_a_usage_error_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submitt"]) == 2
    assert "Did you mean submit?" in capsys.readouterr().err


def test_submit_waits_until_the_inputs_are_checked(
    connected: SmallServer, job_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    connected.state.validate = _queued
    assert main(["submit", job_file, "-s", "experiment=other"]) == 0
    out, err = capsys.readouterr()
    assert out == "other-1  QUEUED\n"
    assert "tunesmith watch other-1" in err


def test_submit_of_missing_data_fails_with_the_remedy(
    connected: SmallServer, job_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    connected.state.validate = _rejected
    assert main(["submit", job_file]) == 4
    err = capsys.readouterr().err
    assert "failed: there is no dataset chat" in err
    assert "remedy: `tunesmith datasets list` lists them" in err


def test_a_file_with_mistakes_is_not_sent(
    connected: SmallServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD + "lerning_rate: 1\ntraining: {seed: -1}\n")
    assert main(["submit", str(path)]) == 1
    err = capsys.readouterr().err
    assert "has 2 errors" in err
    assert "training.seed: must be at least 0 (line 5)\n    value: -1" in err
    assert connected.state.calls == []


def test_submit_reads_standard_input(
    connected: SmallServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connected.state.validate = _queued
    monkeypatch.setattr("sys.stdin", io.StringIO(GOOD))
    assert main(["submit", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "JOB_STATE_QUEUED"


def _run_to_the_end(job: jobs_pb2.Job) -> None:
    job.state = state_pb2.JOB_STATE_SUCCEEDED
    job.terminal = True
    job.model_version = "projects/default/models/demo/versions/1"
    job.progress.CopyFrom(state_pb2.Progress(step=96, total_steps=96, loss=1.25, first_loss=3.5))
    job.samples.add(prompt="Hi?", before="um", after="Hello!")


def test_watching_into_a_pipe_prints_plain_lines_and_the_result(
    connected: SmallServer, job_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    connected.state.validate = _run_to_the_end
    assert main(["submit", job_file, "--watch"]) == 0
    out = capsys.readouterr().out
    assert "step 96/96 (100 %)   loss 1.25 (first 3.5)" in out
    assert "demo@1" in out
    assert "Hello!" in out
    assert "\x1b" not in out


def test_watching_as_json_prints_a_line_per_update(
    connected: SmallServer, job_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    connected.state.validate = _rejected
    assert main(["submit", job_file, "--watch", "--json"]) == 4
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["failure"]["reason"] == "DATASET_NOT_FOUND"


def test_listings_are_tables_and_json(
    connected: SmallServer, job_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    connected.state.validate = _run_to_the_end
    for _ in range(2):
        assert main(["submit", job_file]) == 0
    capsys.readouterr()
    assert main(["list"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:4] for row in rows] == [
        ["JOB", "STATE", "DONE", "LOSS"],
        ["demo-2", "SUCCEEDED", "100", "%"],
        ["demo-1", "SUCCEEDED", "100", "%"],
    ]
    assert main(["list", "--json", "--limit", "1"]) == 0
    assert [job["display_name"] for job in json.loads(capsys.readouterr().out)] == ["demo-2"]
    assert main(["list", "--state", "failed"]) == 0
    assert "tunesmith submit" in capsys.readouterr().err


def test_answers_of_a_model_cannot_steer_the_terminal_and_an_empty_one_is_said(
    connected: SmallServer, job_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def answered(job: jobs_pb2.Job) -> None:
        _run_to_the_end(job)
        job.samples.add(prompt="why?", before="\x1b[2Jnone\nof it", after="")

    connected.state.validate = answered
    assert main(["submit", job_file, "--watch"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[2Jnone of it" in out
    assert "(an empty answer)" in out


def test_show_prints_a_job_file_that_can_be_submitted_again(
    connected: SmallServer, job_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    connected.state.validate = _queued
    main(["submit", job_file, "--json"])
    capsys.readouterr()
    assert main(["show", "demo-1", "--spec"]) == 0
    assert capsys.readouterr().out == GOOD
    assert main(["show", "demo-1"]) == 0
    assert capsys.readouterr().out.startswith("demo-1  QUEUED")


def test_logs_are_printed_and_searched(
    connected: SmallServer, job_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    connected.state.validate = _run_to_the_end
    main(["submit", job_file])
    connected.log("loading", "step 1 loss [3.5]", "step 2 loss [3.1]")
    capsys.readouterr()
    assert main(["logs", "demo-1", "--contains", "loss", "--tail", "1"]) == 0
    assert capsys.readouterr().out == "step 2 loss [3.1]\n"
    assert main(["logs", "demo-1", "-f"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "loading"


def test_cancel_now_ends_the_job(
    connected: SmallServer, job_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    connected.state.validate = _queued
    main(["submit", job_file])
    capsys.readouterr()
    assert main(["cancel", "demo-1", "--now", "--wait"]) == 0
    assert capsys.readouterr().out == "demo-1  CANCELLED\n"


def test_a_dataset_is_imported_or_refused_by_line(
    connected: SmallServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "My Chat.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert main(["datasets", "import", str(path)]) == 0
    assert "imported my-chat@1  2 rows" in capsys.readouterr().out
    path.write_text('{"text": "a"}\noops\n')
    assert main(["datasets", "validate", str(path)]) == 1
    assert "error: line 2 is no JSON object\n  field: line 2\n  value: oops\n" in capsys.readouterr().err


def test_versions_of_client_and_server(connected: SmallServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["server"] == "9.9.9"
    connected.stop()
    assert main(["version"]) == 0
    assert "server unknown: cannot reach" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["show", "nobody"], 3, "error: there is no job nobody"),
        (["--token", "bad", "list"], 1, "remedy: ask for a new token"),
        (["list", "--state", "runing"], 1, "use one of validating, queued"),
        (["list", "--limit", "0"], 2, "remedy: see `tunesmith list --help`"),
        (["--address", "nowhere", "--token", "t", "list"], 1, "host:port"),
        (["submit", "/nowhere/job.yaml"], 1, "No such file"),
        (["serve", "kitchen"], 2, "there is no service 'kitchen'"),
    ],
)
def test_errors_are_sentences_with_their_exit_code(
    connected: SmallServer, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_a_server_that_is_away_has_its_own_exit_code(
    connected: SmallServer, capsys: pytest.CaptureFixture[str]
) -> None:
    connected.stop()
    assert main(["list"]) == 5
    assert "start it with `tunesmith up`" in capsys.readouterr().err


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tunesmith", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_an_interrupt_stops_watching_and_says_so_by_its_exit_code(
    connected: SmallServer, job_file: str
) -> None:
    connected.state.validate = _queued
    main(["submit", job_file])
    with _start("watch", "demo-1") as process:
        assert process.stdout is not None
        assert "QUEUED" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert err.strip() == ""
    assert process.returncode == 130


def test_a_watch_tells_of_a_lost_connection_and_goes_on(connected: SmallServer, job_file: str) -> None:
    connected.state.validate = _queued
    main(["submit", job_file])
    job_id = next(iter(connected.state.jobs))
    with _start("watch", "demo-1") as process:
        assert process.stdout is not None
        assert "QUEUED" in process.stdout.readline()
        connected.stop()
        assert "connection lost" in process.stdout.readline()
        connected.start()
        connected.change(job_id, state=state_pb2.JOB_STATE_CANCELLED)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 4
    assert "CANCELLED" in out
    assert err == "cancelled: job demo-1 was ended by a user\n"


def test_a_reader_that_has_seen_enough_is_no_reason_to_complain(
    connected: SmallServer, job_file: str
) -> None:
    connected.state.validate = _queued
    main(["submit", job_file])
    connected.log(*(f"line {number} {'x' * 100}" for number in range(5000)))
    with _start("logs", "demo-1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.wait(timeout=30)
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_completion_scripts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert "_TUNESMITH_COMPLETE" in capsys.readouterr().out
