"""The process as the agent starts it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.trainer import support


def test_standby_waits_for_its_folder_and_leads_its_own_session(make_run: Callable[..., Path]) -> None:
    run = make_run(support.spec(max_steps="2"))
    process = support.start("tunesmith_trainer.worker", "--standby")
    idle = support.start("tunesmith_trainer.worker", "--standby")
    try:
        assert support.read_line(process) == "ready"
        assert os.getpgid(process.pid) == os.getsid(process.pid) == process.pid
        support.write_line(process, str(run))
        assert process.wait(support.DEADLINE_SECONDS) == 0, support.log_of(run)
        assert support.finished(run)["result"] == "completed"
        assert support.status(run)["pid"] == process.pid
        assert "TRAINING_COMPLETE" in support.log_of(run)
        assert support.read_line(process) == ""  # its words went to the log
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
