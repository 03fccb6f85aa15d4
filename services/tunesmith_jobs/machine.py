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
TRAINS = frozenset({STARTING, RUNNING})  # and goes on until somebody stops it
HAS_ATTEMPT = TRAINS | {PAUSING, CANCELLING}

# Which states follow which. A terminal state is final: to go on is a new job (fork).
TRANSITIONS: dict[s.JobState.ValueType, frozenset[s.JobState.ValueType]] = {
    VALIDATING: frozenset({QUEUED, PAUSED, FAILED, CANCELLED}),
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

# The same for external runs: nobody schedules them. PAUSED means that nothing is heard of the program; it, or
# whoever has what it wrote, takes the run up again or ends it.
EXTERNAL: dict[s.JobState.ValueType, frozenset[s.JobState.ValueType]] = {
    VALIDATING: frozenset({RUNNING}),
    RUNNING: frozenset({PAUSED, CANCELLING, SUCCEEDED, FAILED}),
    PAUSED: frozenset({RUNNING, CANCELLED, SUCCEEDED, FAILED}),
    CANCELLING: frozenset({CANCELLED}),
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
    HALVING = "halving"  # as often as micro-batches can be halved, if the job's policy says so
    NEVER = "never"


BUDGETS: dict[s.FailureClass.ValueType, Budget] = {
    s.FAILURE_CLASS_UNSPECIFIED: Budget.INFRA,
    s.FAILURE_CLASS_PREEMPTED: Budget.UNLIMITED,
    s.FAILURE_CLASS_DRAINED: Budget.UNLIMITED,
    s.FAILURE_CLASS_NODE_LOST: Budget.UNLIMITED,
    s.FAILURE_CLASS_INFRA: Budget.INFRA,
    s.FAILURE_CLASS_STALLED: Budget.INFRA,
    s.FAILURE_CLASS_USER_ERROR: Budget.PROGRESS,
    s.FAILURE_CLASS_OOM: Budget.HALVING,
    s.FAILURE_CLASS_NAN_LOSS: Budget.NEVER,
    s.FAILURE_CLASS_INVALID_INPUT: Budget.NEVER,
    s.FAILURE_CLASS_RESUME_MISMATCH: Budget.NEVER,
    s.FAILURE_CLASS_FINALIZE: Budget.NEVER,
    s.FAILURE_CLASS_UNSATISFIABLE: Budget.NEVER,
    s.FAILURE_CLASS_QUEUE_DEADLINE: Budget.NEVER,
    s.FAILURE_CLASS_RUN_DEADLINE: Budget.NEVER,
}
# Failures of one job on one node after which it is placed elsewhere while another node fits.
AVOID_NODE_AFTER = 2
# Why an attempt is stopped although its job is to run on; kept while PAUSING and carried into the queue.
STOP_REASONS = frozenset(
    {
        s.STATE_REASON_PREEMPTED,
        s.STATE_REASON_MOVED,
        s.STATE_REASON_DRAINED,
        s.STATE_REASON_RUN_DEADLINE,
    }
)


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
    may_halve: bool = False  # micro-batches may be halved once more


def after_cancel(state: s.JobState.ValueType) -> Outcome:
    """Where a job goes when the user ends it. Jobs without processes end at once.

    Raises:
        FailedPrecondition: the job has finished, or its result is being registered.
    """
    if state in TERMINAL or state == FINALIZING:
        remedy = "nothing is left to cancel" if state in TERMINAL else "wait: it is about to end"
        raise refusal("JOB_TERMINAL", state, "cancelled", remedy)
    return Outcome(CANCELLING if state in HAS_ATTEMPT else CANCELLED)


def after_pause(state: s.JobState.ValueType, latest: bool, has_checkpoint: bool) -> Outcome:
    """Where a job goes when the user lets it rest. The same state: it is on its way there, or there.

    Raises:
        FailedPrecondition: the job is about to end or has, or there is no checkpoint to go back to.
    """
    if state in TERMINAL:
        raise refusal(
            "JOB_TERMINAL", state, "paused", "nothing runs; `tunesmith fork` goes on from a checkpoint"
        )
    if state in (CANCELLING, FINALIZING):
        raise refusal("STATE_CONFLICT", state, "paused", "wait: it is about to end")
    if state in HAS_ATTEMPT and latest and not has_checkpoint:
        raise refusal(
            "CHECKPOINT_MISSING", state, "paused without saving: it has no checkpoint yet", "use mode `save`"
        )
    if state in HAS_ATTEMPT:
        return Outcome(PAUSING)
    return Outcome(state if state == VALIDATING else PAUSED)


def after_resume(state: s.JobState.ValueType, desired: s.Desired.ValueType) -> Outcome:
    """Where a job goes when the user resumes it. A job that is still pausing is queued as soon as it has.

    Raises:
        FailedPrecondition: the job does not rest and is not about to.
    """
    if state == PAUSED:
        return Outcome(QUEUED, s.STATE_REASON_RESUMED)
    if state in TERMINAL:
        raise refusal(
            "JOB_TERMINAL", state, "resumed", "`tunesmith fork` goes on from one of its checkpoints"
        )
    if desired != s.DESIRED_PAUSE:
        remedy = (
            "nothing is to be done" if state not in (CANCELLING, FINALIZING) else "wait: it is about to end"
        )
        raise refusal("STATE_CONFLICT", state, "resumed", remedy)
    return Outcome(state, s.STATE_REASON_RESUMED if state == PAUSING else s.STATE_REASON_UNSPECIFIED)


def after_stop(state: s.JobState.ValueType, reason: s.StateReason.ValueType) -> Outcome | None:
    """Where a job goes when we stop its attempt for `reason`; nothing if it is stopping already."""
    assert reason in STOP_REASONS
    return Outcome(PAUSING, reason) if state in TRAINS else None


def refusal(reason: str, state: s.JobState.ValueType, what: str, remedy: str) -> FailedPrecondition:
    """Returns the error of a verb that does not fit the state: "the job is QUEUED and cannot be `what`"."""
    name = s.JobState.Name(state).removeprefix("JOB_STATE_")
    message = f"the job is {name} and cannot be {what}"
    return FailedPrecondition(reason, message, field="state", value=name, remedy=remedy)


def after_attempt(
    state: s.JobState.ValueType,
    desired: s.Desired.ValueType,
    end: s.AttemptState.ValueType,
    failure: s.FailureClass.ValueType,
    history: History,
    reason: s.StateReason.ValueType = s.STATE_REASON_UNSPECIFIED,
) -> Outcome:
    """Where a job in `state` (for `reason`) goes when its attempt ends as `end`."""
    assert state in HAS_ATTEMPT
    assert end in ATTEMPT_ENDS
    if end == s.ATTEMPT_STATE_COMPLETED:
        return Outcome(FINALIZING)
    if state == CANCELLING:
        return Outcome(CANCELLED)  # a crash while cancelling is a cancel
    if state == PAUSING and desired == s.DESIRED_PAUSE:
        return Outcome(PAUSED)  # a slow or crashed pause falls back to the last checkpoint
    stopped_for = reason if state == PAUSING else s.STATE_REASON_UNSPECIFIED
    if stopped_for == s.STATE_REASON_RUN_DEADLINE:
        return Outcome(FAILED, stopped_for)
    if end == s.ATTEMPT_STATE_CHECKPOINTED:
        return Outcome(QUEUED, stopped_for or s.STATE_REASON_PREEMPTED)
    if end == s.ATTEMPT_STATE_KILLED or may_retry(failure, history):
        return Outcome(QUEUED, stopped_for or s.STATE_REASON_RETRY)
    return Outcome(FAILED)


def may_retry(failure: s.FailureClass.ValueType, history: History) -> bool:
    """Whether a failure of this class allows another attempt."""
    budget = BUDGETS.get(failure, Budget.INFRA)
    if budget is Budget.UNLIMITED:
        return True
    if budget is Budget.INFRA:
        return history.infra_failures < history.max_infra_retries
    if budget is Budget.HALVING:
        return history.may_halve
    return budget is Budget.PROGRESS and history.progressed and history.user_errors == 0


def after_inputs(valid: bool, desired: s.Desired.ValueType = s.DESIRED_RUN) -> Outcome:
    """Where a VALIDATING job goes when the registry has checked its inputs."""
    if not valid:
        return Outcome(FAILED)
    return Outcome(PAUSED) if desired == s.DESIRED_PAUSE else Outcome(QUEUED, s.STATE_REASON_NEW)


def after_start(state: s.JobState.ValueType) -> Outcome:
    """Where an external run goes when a program begins it or takes it up.

    Raises:
        FailedPrecondition: it has ended, or is being ended.
    """
    if state in TERMINAL:
        raise refusal("JOB_TERMINAL", state, "taken up", "begin a new run")
    if state == CANCELLING:
        raise refusal("STATE_CONFLICT", state, "taken up", "somebody cancelled it: begin a new run")
    return Outcome(RUNNING)


def after_finish(state: s.JobState.ValueType, failed: bool) -> Outcome:
    """Where an external run goes when its program says that it is done. One that was to be cancelled is."""
    assert state in (RUNNING, PAUSED, CANCELLING)
    if state == CANCELLING:
        return Outcome(CANCELLED)
    return Outcome(FAILED if failed else SUCCEEDED)


def after_silence(state: s.JobState.ValueType) -> Outcome:
    """Where an external run goes when nothing was heard of its program for too long."""
    assert state in (RUNNING, CANCELLING)
    return Outcome(CANCELLED) if state == CANCELLING else Outcome(PAUSED, s.STATE_REASON_WRITER_LOST)


def after_output(verified: bool) -> Outcome:
    """Where a FINALIZING job goes when the registry has checked its output."""
    return Outcome(SUCCEEDED if verified else FAILED)


def attempt_advances(old: s.AttemptState.ValueType, new: s.AttemptState.ValueType) -> bool:
    """Whether a report of `new` says something newer than `old`."""
    if old in ATTEMPT_ENDS:
        return False
    return new in ATTEMPT_ENDS or _ATTEMPT_ORDER.index(new) > _ATTEMPT_ORDER.index(old)
