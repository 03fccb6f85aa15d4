"""The trainer's `status.json` in the words of the contract."""

from typing import Any

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_agent.folder import Notes

_LAST_WORD_BYTES = 64 * 1024


def progress_of(status: dict[str, Any]) -> state_pb2.Progress:
    """Returns how far training is."""
    progress = state_pb2.Progress(
        step=status.get("step") or 0,
        total_steps=status.get("total_steps") or 0,
        epoch=status.get("epoch") or 0.0,
        loss=status.get("loss") or 0.0,
        first_loss=status.get("first_loss") or 0.0,
        tokens_per_second=status.get("tokens_per_second") or 0.0,
        phase=status.get("phase") or "",
        eval_loss=status.get("eval_loss"),
    )
    if status.get("eta_seconds") is not None:
        progress.eta.FromMilliseconds(int(status["eta_seconds"] * 1000))
    progress.time.FromMilliseconds(int(status.get("time", 0) * 1000))
    return progress


def end_of(
    status: dict[str, Any], notes: Notes, exit_code: int | None, disk_free_bytes: int
) -> nodes_pb2.ReportAttemptRequest:
    """Returns the report of an ended attempt. Only the record in the folder counts, never the exit code."""
    finished = status.get("finished")
    if finished is None:
        return _crashed(status, notes, exit_code, disk_free_bytes)
    if finished["result"] == "completed":
        return nodes_pb2.ReportAttemptRequest(state=state_pb2.ATTEMPT_STATE_COMPLETED)
    if finished["result"] == "checkpointed":
        return nodes_pb2.ReportAttemptRequest(state=state_pb2.ATTEMPT_STATE_CHECKPOINTED)
    name = f"FAILURE_CLASS_{finished.get('failure_class', 'USER_ERROR')}"
    known = name in state_pb2.FailureClass.keys()  # noqa: SIM118  the enum wrapper is no mapping
    failure = state_pb2.Failure(
        failure_class=state_pb2.FailureClass.Value(name) if known else state_pb2.FAILURE_CLASS_USER_ERROR,
        reason=finished.get("reason", ""),
        message=finished.get("message", ""),
        remedy=finished.get("remedy", ""),
    )
    return nodes_pb2.ReportAttemptRequest(state=state_pb2.ATTEMPT_STATE_FAILED, failure=failure)


def _crashed(
    status: dict[str, Any], notes: Notes, exit_code: int | None, disk_free_bytes: int
) -> nodes_pb2.ReportAttemptRequest:
    if notes.told_to_kill or notes.told_to_stop:
        return nodes_pb2.ReportAttemptRequest(state=state_pb2.ATTEMPT_STATE_KILLED)
    how = "" if exit_code is None else f" (exit code {exit_code})"
    # On a full disk the trainer could not even leave its last word.
    full = disk_free_bytes < _LAST_WORD_BYTES
    failure = state_pb2.Failure(
        failure_class=state_pb2.FAILURE_CLASS_INFRA,
        reason="DISK_FULL" if full else "PROCESS_DIED",
        message=f"the trainer died in phase {status.get('phase', 'INIT')}{how} without a word"
        + (", and its disk is full" if full else ""),
        remedy="free space on the node's disk, then submit the job again"
        if full
        else "see the end of the job's log; another attempt goes on from the last checkpoint",
    )
    return nodes_pb2.ReportAttemptRequest(state=state_pb2.ATTEMPT_STATE_FAILED, failure=failure)
