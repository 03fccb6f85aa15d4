"""The process as the agent starts it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support.processes import wait_for
from tests.trainer import support


def test_a_standby_forks_trainers_that_wait_for_their_folder(make_run: Callable[..., Path]) -> None:
    runs = [make_run(support.spec(max_steps="2"), name=name) for name in ("one", "two")]
    server = support.start("tunesmith_trainer.worker", "--standby")
    try:
        assert support.read_line(server) == "ready"
        pids = []
        for _ in range(3):
            support.write_line(server, "fork")
            word, number = support.read_line(server).split()
            assert word == "forked"
            pids.append(int(number))
        assert all(os.getpgid(pid) == os.getsid(pid) == pid for pid in pids)
        for pid, run in zip(pids, runs, strict=False):
            support.write_line(server, f"begin {pid} 0 {run}")
        ends = {support.read_line(server) for _ in runs}
        assert ends == {f"ended {pid} 0" for pid in pids[:2]}
        for pid, run in zip(pids, runs, strict=False):
            assert support.finished(run)["result"] == "completed", support.log_of(run)
            assert support.status(run)["pid"] == pid
            assert "TRAINING_COMPLETE" in support.log_of(run)
        waiting = psutil.Process(pids[2])
    finally:
        support.stop(server)
    waiting.wait(support.DEADLINE_SECONDS)  # the end of the server ends those that nobody let go


def test_a_standby_whose_agent_dies_does_not_go_on_importing() -> None:
    with support.start("tunesmith_trainer.worker", "--standby") as server:
        assert server.stdin is not None
        assert server.stdout is not None
        maps = Path(f"/proc/{server.pid}/maps")
        wait_for(lambda: "libtorch" in maps.read_text(), support.DEADLINE_SECONDS, "it imports")
        server.stdin.close()
        assert server.stdout.read() == "", "it has become ready for nobody"


def test_a_worker_waits_for_its_folder_and_leads_its_own_session(make_run: Callable[..., Path]) -> None:
    run = make_run(support.spec(max_steps="2"))
    process = support.start("tunesmith_trainer.worker", "--wait")
    idle = support.start("tunesmith_trainer.worker", "--wait")
    try:
        support.write_line(process, f"0 {run}")
        assert process.wait(support.DEADLINE_SECONDS) == 0, support.log_of(run)
        assert support.finished(run)["result"] == "completed"
        assert support.status(run)["pid"] == process.pid
    finally:
        support.stop(process)
        assert support.stop(idle) == 0  # the end of its input ends it


def test_worker_started_with_a_folder_runs_it(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(support.spec(max_steps="0", num_epochs=0.5))
    process = support.start("tunesmith_trainer.worker", str(run))
    try:
        assert process.wait(support.DEADLINE_SECONDS) == 0, support.log_of(run)
        assert support.status(run)["total_steps"] == 3
    finally:
        support.stop(process)
