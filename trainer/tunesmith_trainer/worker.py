"""Entry of the trainer process: one attempt in one run folder.

`python -m tunesmith_trainer.worker RUN_FOLDER [--rank N]`, or `--wait` for rank and folder on standard input,
or `--standby` to import everything and start trainers by fork (see `forkserver`): the imports take 5 s, most
of the start of a small job.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith_trainer import lifeline

if TYPE_CHECKING:
    from tunesmith_trainer.control import Control
    from tunesmith_trainer.failure import Failure
    from tunesmith_trainer.report import Reporter, StatusFile
    from tunesmith_trainer.run import Run

# Read when transformers, huggingface_hub and CUDA are first imported or started; a trainer never downloads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

COMPLETED, CHECKPOINTED, BAD_INPUT, FAILED = 0, 75, 64, 70
_EVALUATION_MEMORY = "lower evaluation.batch_size, evaluation.max_length or generation.max_new_tokens"
_NO_FAILURE = {"failure_class": "", "reason": "", "message": "", "remedy": ""}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one attempt; gives the exit code."""
    parser = argparse.ArgumentParser(prog="tunesmith_trainer.worker", description=__doc__)
    parser.add_argument("run_folder", nargs="?", type=Path, help="the run folder (docs/run-folder.md)")
    parser.add_argument("--rank", type=int, default=0, help="this process's rank in its group")
    parser.add_argument("--wait", action="store_true", help="read rank and folder from stdin")
    parser.add_argument("--standby", action="store_true", help="import first, then start trainers by fork")
    options = parser.parse_args(arguments)
    if sum((options.standby, options.wait, options.run_folder is not None)) != 1:
        parser.error("give either a run folder, --wait or --standby")
    if os.getsid(0) != os.getpid():
        # A process group leader cannot start a session; then whoever started it chose its group.
        with contextlib.suppress(PermissionError):
            os.setsid()
    # Written to descriptor 2, which is the log by then; from C, whatever the interpreter is busy with.
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    if options.standby:
        lifeline.hold()
        from tunesmith_trainer import forkserver

        return forkserver.serve(begin)
    assigned = _await_folder() if options.wait else (options.rank, options.run_folder)
    return begin(*assigned) if assigned is not None else COMPLETED


def begin(rank: int, folder: Path) -> int:
    """Run an attempt's rank in this process; gives the exit code."""
    folder = folder.resolve()
    if not folder.is_dir():
        sys.stderr.write(f"{folder} is not a folder; give the path of a run folder\n")
        return BAD_INPUT
    _redirect(folder / "logs" / f"rank-{rank}.log")
    return _attempt(folder, rank)


def _await_folder() -> tuple[int, Path] | None:
    """Wait for `RANK PATH`; None when the input ends before: nobody knows of this process then."""
    rank, _, path = sys.stdin.readline().strip().partition(" ")
    return (int(rank), Path(path)) if path else None


def _redirect(path: Path) -> None:
    """Send output to the log, also that of native libraries; what an earlier process wrote stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target in (sys.stdout, sys.stderr):
        target.flush()
        os.dup2(descriptor, target.fileno())
    os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _attempt(folder: Path, rank: int) -> int:
    from tunesmith_trainer import run
    from tunesmith_trainer.control import Control
    from tunesmith_trainer.failure import FailureClass, of_peers
    from tunesmith_trainer.report import EventSpool, Silent, StatusFile, log

    # Libraries tell their own developers what they will change; the log is for the one who trains.
    warnings.simplefilter("ignore", FutureWarning)
    control = Control(folder)
    control.listen()
    status = StatusFile(folder, rank)
    status.write({"phase": "INIT", "step": 0, "total_steps": 0})
    events: Reporter = Silent()
    wanted = None
    try:
        if rank == 0:
            events = EventSpool(folder / "spool")
        wanted = run.load(folder, rank)
        return _TASKS[wanted.task](wanted, events, control, status)
    except BaseException as error:
        traceback.print_exc()
        failure = _classified(error, wanted)
        if rank == 0 and failure.reason == "PEER_LOST":
            failure = of_peers(folder) or failure
        finished = {"result": "failed", **asdict(failure)}
        # On a full disk these may fail as well; then the missing record says that the trainer crashed.
        with contextlib.suppress(OSError):
            log(events, "error", f"{failure.reason}: {failure.message}")
        with contextlib.suppress(OSError):
            status.finish({}, finished)
        return BAD_INPUT if failure.failure_class is FailureClass.INVALID_INPUT else FAILED


def _classified(error: BaseException, wanted: Run | None) -> Failure:
    from tunesmith_trainer.failure import FailureClass, classify, memory_advice

    failure = classify(error)
    if failure.failure_class is FailureClass.OOM and wanted is not None and wanted.task == "evaluation":
        return replace(failure, remedy=_EVALUATION_MEMORY)
    if failure.failure_class is FailureClass.OOM and wanted is not None:
        training = wanted.spec.training
        advice = memory_advice(
            training.micro_batch_size,
            training.gradient_accumulation_steps,
            training.max_length,
            lora=wanted.spec.lora is not None,
        )
        return replace(failure, remedy=advice)
    return failure


def _train(wanted: Run, events: Reporter, control: Control, status: StatusFile) -> int:
    from tunesmith_trainer.control import StopWanted
    from tunesmith_trainer.loop import Loop
    from tunesmith_trainer.session import open_session

    loop = Loop(open_session(wanted, events), control, status)
    keeper = loop.session.keeper
    try:
        loop.run()
        result, code = "completed", COMPLETED
    except StopWanted:
        loop.stop()
        result, code = "checkpointed", CHECKPOINTED
    except BaseException:
        with contextlib.suppress(Exception):  # what failed first is what is told
            if keeper is not None:
                keeper.close()
            loop.tell()
        raise
    if keeper is not None:
        keeper.close()
    loop.tell({"result": result, **_NO_FAILURE})
    loop.session.group.close()
    return code


def _evaluate(wanted: Run, events: Reporter, control: Control, status: StatusFile) -> int:
    from tunesmith_trainer.control import StopWanted
    from tunesmith_trainer.evaluation.run import Evaluation

    evaluation = Evaluation(wanted, events, control, status)
    try:
        evaluation.evaluate()
        result, code = "completed", COMPLETED
    except StopWanted:
        evaluation.save()
        result, code = "checkpointed", CHECKPOINTED
    finally:
        evaluation.close()
    evaluation.tell({"result": result, **_NO_FAILURE})
    return code


def _export(wanted: Run, events: Reporter, control: Control, status: StatusFile) -> int:
    """Nothing of an export is worth keeping: one that is to stop begins anew, unless it ends before."""
    from tunesmith_trainer import exporting
    from tunesmith_trainer.phase import Phase

    status.write({"phase": Phase.EXPORT, "step": 0, "total_steps": 1})
    exporting.export(wanted, events)
    done = {"phase": Phase.EXPORT, "step": 1, "total_steps": 1}
    status.finish(done, {"result": "completed", **_NO_FAILURE})
    return COMPLETED


_TASKS = {"training": _train, "evaluation": _evaluate, "export": _export}


if __name__ == "__main__":
    sys.exit(main())
