"""The states of jobs and attempts: pure functions over one table, nothing else.

Every change of state in the service goes through the functions here. They are total: each end of an attempt
leads to another attempt, to rest, or to a terminal state, whatever the user wanted and whatever went wrong
(`tests/jobs/test_machine.py` walks all combinations).
"""

from dataclasses import dataclass
from enum import Enum

from tunesmith.api.jobs.v1 import state_pb2 as s
from tunesmith.errors import FailedPrecondition

VALIDATING, QUEUED, STARTING, RUNNING = (
    s.JOB_STATE_VALIDATING,
    s.JOB_STATE_QUEUED,
    s.JOB_STATE_STARTING,
    s.JOB_STATE_RUNNING,
)
PAUSING, PAUSED, CANCELLING, FINALIZING = (
    s.JOB_STATE_PAUSING,
    s.JOB_STATE_PAUSED,
    s.JOB_STATE_CANCELLING,
    s.JOB_STATE_FINALIZING,
)
SUCCEEDED, FAILED, CANCELLED = s.JOB_STATE_SUCCEEDED, s.JOB_STATE_FAILED, s.JOB_STATE_CANCELLED

TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})
HAS_ATTEMPT = frozenset({STARTING, RUNNING, PAUSING, CANCELLING})

# Which states follow which. A terminal state is final: to go on is a new job (fork).
TRANSITIONS: dict[s.JobState.ValueType, frozenset[s.JobState.ValueType]] = {
    VALIDATING: frozenset({QUEUED, FAILED, CANCELLED}),
    QUEUED: frozenset({STARTING, PAUSED, FAILED, CANCELLED}),
    STARTING: frozenset({RUNNING, QUEUED, PAUSING, CANCELLING, FINALIZING, FAILED}),
    RUNNING: frozenset({QUEUED, PAUSING, CANCELLING, FINALIZING, FAILED}),
    PAUSING: frozenset({PAUSED, QUEUED, CANCELLING, FINALIZING, FAILED}),
    PAUSED: frozenset({QUEUED, CANCELLED}),
    CANCELLING: frozenset({CANCELLED, FINALIZING}),
    FINALIZING: frozenset({SUCCEEDED, FAILED}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}

ATTEMPT_ENDS = frozenset(
    {
        s.ATTEMPT_STATE_COMPLETED,
        s.ATTEMPT_STATE_CHECKPOINTED,
        s.ATTEMPT_STATE_FAILED,
        s.ATTEMPT_STATE_KILLED,
        s.ATTEMPT_STATE_LOST,
    }
)
# Attempts only go forward in this order; an agent's report of an earlier state is old news.
_ATTEMPT_ORDER = (
    s.ATTEMPT_STATE_RESERVED,
    s.ATTEMPT_STATE_LAUNCHING,
    s.ATTEMPT_STATE_READY,
    s.ATTEMPT_STATE_RUNNING,
    s.ATTEMPT_STATE_STOPPING,
)


class Budget(Enum):
    """How many new attempts a failure class allows."""

    UNLIMITED = "unlimited"
    INFRA = "infra"  # spec.retry.max_infra_retries, refilled by each new checkpoint
    PROGRESS = "progress"  # one, if a checkpoint was committed since the last failure of this kind
    NEVER = "never"


BUDGETS: dict[s.FailureClass.ValueType, Budget] = {
    s.FAILURE_CLASS_UNSPECIFIED: Budget.INFRA,
    s.FAILURE_CLASS_PREEMPTED: Budget.UNLIMITED,
    s.FAILURE_CLASS_DRAINED: Budget.UNLIMITED,
    s.FAILURE_CLASS_NODE_LOST: Budget.UNLIMITED,
    s.FAILURE_CLASS_INFRA: Budget.INFRA,
    s.FAILURE_CLASS_STALLED: Budget.INFRA,
    s.FAILURE_CLASS_USER_ERROR: Budget.PROGRESS,
    s.FAILURE_CLASS_OOM: Budget.NEVER,
    s.FAILURE_CLASS_NAN_LOSS: Budget.NEVER,
    s.FAILURE_CLASS_INVALID_INPUT: Budget.NEVER,
    s.FAILURE_CLASS_RESUME_MISMATCH: Budget.NEVER,
    s.FAILURE_CLASS_FINALIZE: Budget.NEVER,
    s.FAILURE_CLASS_UNSATISFIABLE: Budget.NEVER,
    s.FAILURE_CLASS_QUEUE_DEADLINE: Budget.NEVER,
}


@dataclass(frozen=True)
class Outcome:
    """Where a job goes, and why."""

    state: s.JobState.ValueType
    reason: s.StateReason.ValueType = s.STATE_REASON_UNSPECIFIED


@dataclass(frozen=True)
class History:
    """What earlier attempts used up. Counters are set back when a checkpoint is committed."""

    infra_failures: int
    max_infra_retries: int
    user_errors: int
    progressed: bool  # a checkpoint was committed since the last attempt began


def after_cancel(state: s.JobState.ValueType) -> Outcome:
    """Where a job goes when the user ends it. Jobs without processes end at once.

    Raises:
        FailedPrecondition: the job has finished, or its result is being registered.
    """
    if state in TERMINAL or state == FINALIZING:
        name = s.JobState.Name(state).removeprefix("JOB_STATE_")
        raise FailedPrecondition(
            "JOB_TERMINAL",
            f"the job is {name} and cannot be cancelled",
            field="state",
            value=name,
            remedy="nothing is left to cancel" if state in TERMINAL else "wait: it is about to end",
        )
    return Outcome(CANCELLING if state in HAS_ATTEMPT else CANCELLED)


def after_attempt(
    state: s.JobState.ValueType,
    desired: s.Desired.ValueType,
    end: s.AttemptState.ValueType,
    failure: s.FailureClass.ValueType,
    history: History,
) -> Outcome:
    """Where a job in `state` goes when its attempt ends as `end`."""
    assert state in HAS_ATTEMPT
    assert end in ATTEMPT_ENDS
    if end == s.ATTEMPT_STATE_COMPLETED:
        return Outcome(FINALIZING)
    if state == CANCELLING:
        return Outcome(CANCELLED)  # a crash while cancelling is a cancel
    if state == PAUSING and desired == s.DESIRED_PAUSE:
        return Outcome(PAUSED)  # a slow or crashed pause falls back to the last checkpoint
    if end == s.ATTEMPT_STATE_CHECKPOINTED:
        return Outcome(QUEUED, s.STATE_REASON_PREEMPTED)
    if end == s.ATTEMPT_STATE_KILLED or may_retry(failure, history):
        return Outcome(QUEUED, s.STATE_REASON_RETRY)
    return Outcome(FAILED)


def may_retry(failure: s.FailureClass.ValueType, history: History) -> bool:
    """Whether a failure of this class allows another attempt."""
    budget = BUDGETS.get(failure, Budget.INFRA)
    if budget is Budget.UNLIMITED:
        return True
    if budget is Budget.INFRA:
        return history.infra_failures < history.max_infra_retries
    return budget is Budget.PROGRESS and history.progressed and history.user_errors == 0


def after_inputs(valid: bool) -> Outcome:
    """Where a VALIDATING job goes when the registry has checked its inputs."""
    return Outcome(QUEUED, s.STATE_REASON_NEW) if valid else Outcome(FAILED)


def after_output(verified: bool) -> Outcome:
    """Where a FINALIZING job goes when the registry has checked its output."""
    return Outcome(SUCCEEDED if verified else FAILED)


def attempt_advances(old: s.AttemptState.ValueType, new: s.AttemptState.ValueType) -> bool:
    """Whether a report of `new` says something newer than `old`."""
    if old in ATTEMPT_ENDS:
        return False
    return new in ATTEMPT_ENDS or _ATTEMPT_ORDER.index(new) > _ATTEMPT_ORDER.index(old)
