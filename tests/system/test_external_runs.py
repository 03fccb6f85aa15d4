"""Runs of programs of one's own: recorded whole, whatever becomes of the server and of the program."""

import json
import math
import os
import signal
from pathlib import Path

import pytest

from tests.support.platform import Platform
from tests.support.processes import wait_for
from tests.support.programs import Programs, losses
from tests.support.proxy import Proxy
from tunesmith import FailedPrecondition
from tunesmith.api.metrics.v1 import records_pb2
from tunesmith.spool import Spool

_SECONDS = 60


@pytest.fixture
def programs(embedded_platform: Platform, tmp_path: Path) -> Programs:
    return Programs(embedded_platform, tmp_path)


def test_a_program_records_its_run_and_it_is_found_like_any_job(programs: Programs) -> None:
    code, out, err = programs.run(
        "run = tunesmith.init(experiment='mine', config={'lr': 0.5, 'net': {'depth': 3}}, total_steps=300)\n"
        "for step in range(300):\n"
        "    tunesmith.log({'train/loss': 1 / (step + 1), 'odd': float('nan') if step % 2 else 1}, step)\n"
        "run.write('first\\nsecond <script>', 'warning')\n"
        "say(run.name)\n"
    )
    assert (code, err, programs.left()) == (0, "", [])
    name = out.strip()
    with programs.platform.client() as client:
        job = client.jobs.get(name)
        assert (job.state, job.proto.progress.step, job.proto.progress.total_steps) == ("SUCCEEDED", 299, 300)
        assert losses(client, job.id) == (list(range(300)), [1 / (step + 1) for step in range(300)])
        odd = losses(client, job.id, "odd")[1]
        assert [math.isnan(value) for value in odd] == [bool(step % 2) for step in range(300)]
        lines = [(line.text, line.step) for line in job.logs()]
        assert lines == [("first", 299), ("second <script>", 299)]
        wanted = "net.depth = 3 and train/loss < 0.01 and state = SUCCEEDED"
        (found,) = wait_for(
            lambda: client.runs.query(wanted) or None, _SECONDS, "the metrics service hears of the end"
        )
        assert (found.name, found.config["lr"]) == (name, "0.5")
        assert [attempt.epoch for attempt in job.attempts()] == [1]
    shown = programs.platform.run("show", name).stdout
    assert "net.depth=3" in shown
    assert name in programs.platform.run("list", "--experiment", "mine").stdout


def test_nothing_is_lost_while_the_server_is_away_and_nothing_comes_twice(programs: Programs) -> None:
    host, _, port = programs.platform.address.rpartition(":")
    proxy = Proxy(host, int(port))
    try:
        with programs.start(
            "run = tunesmith.init(experiment='away')\n"
            "for step in range(100): run.log({'train/loss': step}, step)\n"
            "say(run.id)\n"
            "sys.stdin.readline()\n"
            "for step in range(100, 5000): run.log({'train/loss': step}, step)\n"
            "say(run.finish(seconds=0.5))\n",
            proxy.address,
        ) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            job_id = program.stdout.readline().strip()
            with programs.platform.client() as client:
                wait_for(lambda: client.metrics.list(job_id) or None, _SECONDS, "the first points are stored")
            proxy.reset()
            out, err = program.communicate("\n", timeout=_SECONDS)
        assert (program.returncode, out.strip()) == (0, "False")
        assert "`tunesmith sync" in err
        (folder,) = programs.left()
        sent = json.loads((folder / "sent.json").read_text())
        (folder / "sent.json").write_text(json.dumps(sent | {"position": 0}))  # all is sent again
        (told,) = programs.sync()
    finally:
        proxy.close()
    assert (told["outcome"], programs.left()) == ("ended", [])
    with programs.platform.client() as client:
        assert losses(client, job_id) == (list(range(5000)), [float(step) for step in range(5000)])
        (summary,) = client.metrics.list(job_id)
        assert summary.num_points == 5000
        assert client.external.write(job_id, 1).metrics_seq == 5000, "each record has the number it had"
        records = [records_pb2.LoggedRecord(step=0, values={"train/loss": -1.0})]
        client.external.write(job_id, 1, records=records, first_seq=1)
        assert losses(client, job_id)[1][0] == 0.0, "a number that is known is not stored again"
        assert client.jobs.get(job_id).state == "SUCCEEDED"


def test_a_run_begun_without_a_server_is_made_by_sync(programs: Programs) -> None:
    code, out, err = programs.run(
        "with tunesmith.init(experiment='cellar', offline=True) as run:\n"
        "    run.log({'train/loss': 1.0})\n"
        "    run.log({'train/loss': 0.5})\n"
        "    say(run.id)\n"
    )
    assert code == 0, err
    (told,) = programs.sync()
    assert (told["outcome"], programs.left(), programs.sync()) == ("ended", [], [])
    with programs.platform.client() as client:
        assert losses(client, out.strip()) == ([0, 1], [1.0, 0.5])
        assert client.jobs.get(told["run"]).state == "SUCCEEDED"


def test_a_killed_program_loses_nothing_and_another_takes_its_run_up(programs: Programs) -> None:
    with programs.start(
        "run = tunesmith.init(experiment='killed')\n"
        "for step in range(1000): run.log({'train/loss': step}, step)\n"
        "say(run.id)\n"
        "sys.stdin.readline()\n"
    ) as program:
        assert program.stdout is not None
        job_id = program.stdout.readline().strip()
        (busy,) = programs.sync()
        assert busy["outcome"] == "in use"
        os.kill(program.pid, signal.SIGKILL)
    code, out, err = programs.run(
        f"run = tunesmith.init(resume='{job_id}')\n"
        "for step in range(990, 1100): run.log({'train/loss': -step}, step)\n"
        "say(run.id)\n"
    )
    assert (code, out.strip()) == (0, job_id), err
    with Spool.open(programs.left()[0]).alone() as alone:
        assert (alone, programs.sync()[0]["outcome"]) == (True, "in use"), "one at a time"
    (told,) = programs.sync()  # of the first program, whatever had not been sent when it was killed
    assert told["outcome"] == "open"
    (told,) = programs.sync("--end", "failed")
    assert (told["outcome"], programs.left()) == ("sent", [])
    with programs.platform.client() as client:
        steps, values = losses(client, job_id)
        assert steps == list(range(1100))
        assert values == [float(step if step < 990 else -step) for step in steps]
        job = client.jobs.get(job_id)
        assert job.state == "SUCCEEDED", "its end is that of the newest attempt"
        assert [attempt.epoch for attempt in job.attempts()] == [2, 1]


def test_an_exception_fails_the_run_and_a_cancel_ends_the_program(programs: Programs) -> None:
    code, out, err = programs.run(
        "run = tunesmith.init(experiment='bad')\n"
        "run.log({'train/loss': 1.0})\n"
        "say(run.id)\n"
        "raise ValueError('no <b>luck</b>')\n"
    )
    assert (code, "ValueError" in err) == (1, True)
    with programs.platform.client() as client:
        job = client.jobs.get(out.strip())
        assert (job.state, job.proto.failure.message) == ("FAILED", "ValueError: no <b>luck</b>")
        with programs.start(
            "import time\n"
            "from tunesmith import courier\n"
            "courier._RENEW_SECONDS = 0.2\n"
            "run = tunesmith.init(experiment='long')\n"
            "say(run.id)\n"
            "while True:\n"
            "    run.log({'train/loss': 1.0})\n"
            "    time.sleep(0.01)\n"
        ) as program:
            assert program.stdout is not None
            job = client.jobs.get(program.stdout.readline().strip())
            job.cancel()
            _, err = program.communicate(timeout=_SECONDS)
        assert "somebody cancelled run" in err
        assert job.wait(timeout=_SECONDS).state == "CANCELLED"
        with pytest.raises(FailedPrecondition) as over:
            client.external.start(job_id=job.id)
        assert over.value.reason == "JOB_TERMINAL"


def test_what_a_stranger_writes_is_refused_with_the_place(programs: Programs) -> None:
    with programs.platform.rest() as http, programs.platform.client() as client:
        theirs = next(iter(client.jobs.list(limit=1, states=["succeeded", "failed"])), None)
        begun = http.post("/api/v1/projects/default/externalRuns", json={"experiment": "rest"}).json()
        run = f"/api/v1/{begun['job']['name']}"
        wait_for(
            lambda: http.post(f"{run}/records", json={"epoch": 1}).status_code == 200 or None,
            _SECONDS,
            "the metrics service knows the run",
        )
        good = {
            "epoch": 1, "first_seq": "1", "records": [{"step": "3", "values": {"a": 1.5, "b": "NaN"}}],
            "lines": [{"text": "grüße", "level": "LOG_LEVEL_INFO"}],
        }  # fmt: skip
        for _ in range(2):
            answer = http.post(f"{run}/records", json=good)
            assert answer.json() == {"metrics_seq": "1", "log_offset": "8", "pause": "0.500s"}
        with http.stream("GET", f"{run}/series:watch", headers={"accept": "text/event-stream"}):
            wait_for(
                lambda: http.post(f"{run}/records", json=good).json()["pause"] == "0.050s" or None,
                _SECONDS,
                "whoever writes hears that somebody looks, and gathers for less long",
            )
        record = good["records"][0]  # type: ignore[index]
        for change, field in (
            ({"first_seq": "0"}, "first_seq"),
            ({"records": [record | {"values": {}}]}, "records[0].values"),
            ({"records": [record | {"values": {"\u0007": 1}}]}, "records.values"),
            ({"records": [record | {"step": str(2**60)}]}, "records[0].step"),
            ({"records": [record | {"time": "0001-01-01T00:00:00Z"}]}, "records.time"),
            ({"epoch": str(2**40)}, "epoch"),
            ({"lines": [{"text": "a\nb"}]}, "lines[0].text"),
            ({"lines": [{"text": "x" * 20_000}]}, "lines[0].text"),
        ):
            refused = http.post(f"{run}/records", json=good | change)
            assert (refused.status_code, refused.json()["field"]) == (400, field), refused.text
        if theirs is not None and not theirs.proto.spec.HasField("external"):
            refused = http.post(f"/api/v1/{theirs.name}/records", json=good)
            assert (refused.status_code, refused.json()["reason"]) == (409, "RUN_NOT_EXTERNAL")
        done = http.post(f"{run}:finish", json={"epoch": "1"})
        assert done.json()["job"]["state"] == "JOB_STATE_SUCCEEDED"
        client.jobs.get(begun["job"]["job_id"]).delete()
        wait_for(
            lambda: http.post(f"{run}/records", json=good).status_code == 404 or None,
            _SECONDS,
            "what comes of a deleted run is refused for good, not put off",
        )
