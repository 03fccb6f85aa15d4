"""How an attempt ended, in the words of the contract."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.api.jobs.v1 import spec_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2, nodes_pb2
from tunesmith_agent.folder import Notes

_LAST_WORD_BYTES = 64 * 1024
_SIGKILL = -9
Report = nodes_pb2.ReportAttemptRequest


@dataclass(frozen=True)
class Remains:
    """What is left of a group of ranks: their last words and how they went."""

    words: Sequence[dict[str, Any]]  # by rank; empty for one that said nothing
    exit_codes: Sequence[int | None] = ()
    first_dead: int = 0  # index into the two above
    first_rank: int = 0
    disk_free_bytes: int = 1 << 62
    oom_killed: bool = False
    spec: spec_pb2.JobSpec = field(default_factory=spec_pb2.JobSpec)


def end_of(remains: Remains, notes: Notes) -> Report:
    """Returns the report of an ended attempt. Only the records in the folder count, never an exit code."""
    finished = remains.words[0].get("finished") or {}
    if finished.get("result") == "completed":
        return Report(state=state_pb2.ATTEMPT_STATE_COMPLETED)
    if finished.get("result") == "checkpointed":
        return Report(state=state_pb2.ATTEMPT_STATE_CHECKPOINTED)
    told = [_failure(word["finished"]) for word in remains.words if word.get("finished")]
    failures = [failure for failure in told if failure is not None]
    # Ranks that lose a peer fail as INFRA. One that failed for a reason of its own knows why; else the peer
    # that was lost died without a word.
    own = [f for f in failures if f.failure_class != state_pb2.FAILURE_CLASS_INFRA]
    silent = not remains.words[remains.first_dead].get("finished")
    if not failures or (remains.oom_killed and not notes.stalled) or (silent and not own):
        return _crashed(remains, notes)
    return Report(state=state_pb2.ATTEMPT_STATE_FAILED, failure=(own or failures)[0])


def _failure(finished: dict[str, Any]) -> state_pb2.Failure | None:
    if finished.get("result") != "failed":
        return None
    name = f"FAILURE_CLASS_{finished.get('failure_class', 'USER_ERROR')}"
    known = name in state_pb2.FailureClass.keys()  # noqa: SIM118  the enum wrapper is no mapping
    return state_pb2.Failure(
        failure_class=state_pb2.FailureClass.Value(name) if known else state_pb2.FAILURE_CLASS_USER_ERROR,
        reason=finished.get("reason", ""),
        message=finished.get("message", ""),
        remedy=finished.get("remedy", ""),
    )


def _crashed(remains: Remains, notes: Notes) -> Report:
    if notes.stalled:
        return _failed(
            state_pb2.FAILURE_CLASS_STALLED,
            "NO_PROGRESS",
            f"nothing moved for too long in phase {remains.words[0].get('phase', 'INIT')}",
            "the stacks of all threads are in the job's log; another attempt goes on from the last snapshot",
        )
    if notes.told_to_kill or notes.told_to_stop:
        return Report(state=state_pb2.ATTEMPT_STATE_KILLED)
    if remains.oom_killed:
        return _failed(
            state_pb2.FAILURE_CLASS_OOM,
            "KILLED_FOR_MEMORY",
            f"the kernel killed {_who(remains)} for want of memory",
            memory_advice(remains.spec),
        )
    # On a full disk the trainer could not even leave its last word.
    if remains.disk_free_bytes < _LAST_WORD_BYTES:
        return infra(
            "DISK_FULL",
            f"{_who(remains)} died and its disk is full",
            "free space on the node's disk, then submit the job again",
        )
    return infra(
        "PROCESS_DIED",
        f"{_who(remains)} died in phase {_phase(remains)}{_how(remains)} without a word",
        "see the end of the job's log; another attempt goes on from the last snapshot or checkpoint",
    )


def memory_advice(spec: spec_pb2.JobSpec) -> str:
    """Returns which setting to change, and to what, when memory runs out."""
    if spec.HasField("evaluation"):
        return "lower evaluation.batch_size, evaluation.max_length or generation.max_new_tokens"
    training = spec.training
    size, accumulation = training.micro_batch_size, max(training.gradient_accumulation_steps, 1)
    if size > 1:
        part = next(part for part in range(size // 2, 0, -1) if size % part == 0)
        return (
            f"set training.micro_batch_size to {part} and training.gradient_accumulation_steps to "
            f"{size * accumulation // part} (the same global batch)"
            + (", or retry.oom_policy to OOM_POLICY_HALVE_MICRO_BATCH" if part * 2 == size else "")
        )
    return f"set training.max_length below {training.max_length}, or use a node with more memory"


def _who(remains: Remains) -> str:
    rank = remains.first_rank + remains.first_dead
    return f"rank {rank}" if rank or len(remains.words) > 1 else "the trainer"


def _phase(remains: Remains) -> str:
    return str(remains.words[0].get("phase") or "INIT")


def _how(remains: Remains) -> str:
    codes = remains.exit_codes
    code = codes[remains.first_dead] if remains.first_dead < len(codes) else None
    if code is None:
        return ""
    return " (killed by a signal 9 that was not ours)" if code == _SIGKILL else f" (exit code {code})"


def died_early(notes: Notes, assign: events_pb2.AssignAttempt | None) -> Report:
    """Returns the end of an attempt whose trainer was never started."""
    if notes.told_to_kill or notes.told_to_stop:
        return Report(state=state_pb2.ATTEMPT_STATE_KILLED)
    assert assign is None
    return infra("AGENT_RESTARTED", "the agent ended before the trainer had started")


def no_inputs(error: Exception) -> Report:
    """Returns the end of an attempt whose model, data or checkpoint could not be brought."""
    return infra(
        _reason(error, "INPUTS_UNAVAILABLE"), f"model or data cannot be brought to the node: {error}"
    )


def no_folder(error: OSError) -> Report:
    """Returns the end of an attempt whose run folder cannot be made."""
    return infra(_reason(error, "FOLDER_NOT_MADE"), f"the node cannot make the run folder: {error}")


def no_output(error: Exception) -> Report:
    """Returns the end of an attempt whose output cannot be stored."""
    return infra(_reason(error, "OUTPUT_NOT_STORED"), f"the output cannot be stored: {error}")


def declined(epoch: int) -> Report:
    """Returns the end of an attempt whose epoch this node has used up: the database forgot it (a restored
    backup). The job goes on under the next epoch."""
    failure = state_pb2.Failure(
        failure_class=state_pb2.FAILURE_CLASS_INFRA,
        reason="EPOCH_USED",
        message=f"the node has had attempt {epoch} of this job or a later one already",
    )
    return Report(state=state_pb2.ATTEMPT_STATE_KILLED, failure=failure)


def infra(
    reason: str, message: str, remedy: str = "check the node's log, its free space and the blob store"
) -> Report:
    """Returns the end of an attempt that the infrastructure failed."""
    return _failed(state_pb2.FAILURE_CLASS_INFRA, reason, message, remedy)


def _failed(kind: state_pb2.FailureClass.ValueType, reason: str, message: str, remedy: str) -> Report:
    failure = state_pb2.Failure(failure_class=kind, reason=reason, message=message, remedy=remedy)
    return Report(state=state_pb2.ATTEMPT_STATE_FAILED, failure=failure)


def _reason(error: Exception, otherwise: str) -> str:
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return "DISK_FULL" if full or getattr(error, "reason", "") == "DISK_FULL" else otherwise
