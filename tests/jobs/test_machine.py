"""The state machine: total over every combination, and legal in every step."""

from itertools import product

import pytest

from tunesmith.api.jobs.v1 import state_pb2 as s
from tunesmith.errors import FailedPrecondition
from tunesmith_jobs import machine

STATES = [value for name, value in s.JobState.items() if value]
DESIRED = [value for name, value in s.Desired.items() if value]
FAILURES = [value for name, value in s.FailureClass.items()]
REASONS = [value for name, value in s.StateReason.items()]
HISTORIES = [
    machine.History(infra, limit, user, progressed, may_halve)
    for infra, limit, user, progressed, may_halve in product(
        (0, 3), (0, 3), (0, 1), (False, True), (False, True)
    )
]


def test_every_state_says_what_may_follow() -> None:
    assert set(machine.TRANSITIONS) == set(STATES)
    for following in machine.TRANSITIONS.values():
        assert following <= set(STATES)


def test_terminal_states_are_final_and_every_other_state_can_reach_one() -> None:
    assert all(not machine.TRANSITIONS[state] for state in machine.TERMINAL)
    reaching = set(machine.TERMINAL)
    while True:
        more = {state for state in STATES if machine.TRANSITIONS[state] & reaching} - reaching
        if not more:
            break
        reaching |= more
    assert reaching == set(STATES)


def test_every_end_of_an_attempt_leads_to_a_legal_state() -> None:
    walked = 0
    for state, desired, end, failure, history, reason in product(
        machine.HAS_ATTEMPT, DESIRED, machine.ATTEMPT_ENDS, FAILURES, HISTORIES, REASONS
    ):
        outcome = machine.after_attempt(state, desired, end, failure, history, reason)
        assert outcome.state in machine.TRANSITIONS[state], (state, desired, end, failure, history)
        assert outcome.state not in machine.HAS_ATTEMPT, "no attempt is left to wait for"
        walked += 1
    assert walked == 4 * 4 * 5 * 15 * 32 * 9


def test_success_comes_from_a_verified_output_only() -> None:
    ways = [state for state in STATES if machine.SUCCEEDED in machine.TRANSITIONS[state]]
    assert ways == [machine.FINALIZING]
    assert machine.after_output(verified=True).state == machine.SUCCEEDED
    assert machine.after_output(verified=False).state == machine.FAILED


@pytest.mark.parametrize("end", sorted(machine.ATTEMPT_ENDS - {s.ATTEMPT_STATE_COMPLETED}))
@pytest.mark.parametrize("failure", FAILURES)
def test_whatever_happens_while_cancelling_is_a_cancel(
    end: s.AttemptState.ValueType, failure: s.FailureClass.ValueType
) -> None:
    outcome = machine.after_attempt(machine.CANCELLING, s.DESIRED_KILL, end, failure, HISTORIES[0])
    assert outcome.state == machine.CANCELLED


@pytest.mark.parametrize(
    "failure",
    [
        s.FAILURE_CLASS_RUN_DEADLINE,
        s.FAILURE_CLASS_INVALID_INPUT,
        s.FAILURE_CLASS_NAN_LOSS,
        s.FAILURE_CLASS_RESUME_MISMATCH,
    ],
)
@pytest.mark.parametrize("history", HISTORIES)
def test_what_would_fail_again_is_not_tried_again(
    failure: s.FailureClass.ValueType, history: machine.History
) -> None:
    outcome = machine.after_attempt(machine.RUNNING, s.DESIRED_RUN, s.ATTEMPT_STATE_FAILED, failure, history)
    assert outcome.state == machine.FAILED


def test_infrastructure_is_tried_again_until_the_budget_is_spent() -> None:
    def end(failures: int) -> machine.Outcome:
        history = machine.History(failures, 10, 0, False)
        return machine.after_attempt(
            machine.RUNNING, s.DESIRED_RUN, s.ATTEMPT_STATE_FAILED, s.FAILURE_CLASS_INFRA, history
        )

    assert [end(n).state for n in (0, 9, 10)] == [machine.QUEUED, machine.QUEUED, machine.FAILED]
    assert end(0).reason == s.STATE_REASON_RETRY


@pytest.mark.parametrize("may_halve", [False, True])
def test_memory_that_ran_out_is_tried_again_only_with_smaller_micro_batches(may_halve: bool) -> None:
    history = machine.History(0, 10, 0, True, may_halve)
    outcome = machine.after_attempt(
        machine.RUNNING, s.DESIRED_RUN, s.ATTEMPT_STATE_FAILED, s.FAILURE_CLASS_OOM, history
    )
    assert outcome.state == (machine.QUEUED if may_halve else machine.FAILED)


@pytest.mark.parametrize("state", STATES)
def test_a_stop_of_ours_keeps_its_reason_through_the_queue(state: s.JobState.ValueType) -> None:
    for reason in machine.STOP_REASONS:
        stopped = machine.after_stop(state, reason)
        if state not in (machine.STARTING, machine.RUNNING):
            assert stopped is None, "it is stopping already, or has nothing to stop"
            continue
        assert stopped == machine.Outcome(machine.PAUSING, reason)
        for end in machine.ATTEMPT_ENDS - {s.ATTEMPT_STATE_COMPLETED, s.ATTEMPT_STATE_FAILED}:
            after = machine.after_attempt(
                machine.PAUSING, s.DESIRED_RUN, end, s.FAILURE_CLASS_NODE_LOST, HISTORIES[0], reason
            )
            late = reason == s.STATE_REASON_RUN_DEADLINE
            assert after == machine.Outcome(machine.FAILED if late else machine.QUEUED, reason)


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("has_checkpoint", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_a_pause_leads_to_rest_or_is_refused_with_the_state(
    state: s.JobState.ValueType, latest: bool, has_checkpoint: bool
) -> None:
    ending = state in machine.TERMINAL or state in (machine.CANCELLING, machine.FINALIZING)
    if ending or (latest and not has_checkpoint and state in machine.HAS_ATTEMPT):
        with pytest.raises(FailedPrecondition) as caught:
            machine.after_pause(state, latest, has_checkpoint)
        assert caught.value.value == s.JobState.Name(state).removeprefix("JOB_STATE_")
        assert caught.value.remedy
        return
    outcome = machine.after_pause(state, latest, has_checkpoint)
    assert outcome.state == state or outcome.state in machine.TRANSITIONS[state]
    assert outcome.state in (machine.VALIDATING, machine.PAUSING, machine.PAUSED)


@pytest.mark.parametrize("desired", DESIRED)
@pytest.mark.parametrize("state", STATES)
def test_a_resume_leads_back_or_is_refused_with_the_state(
    state: s.JobState.ValueType, desired: s.Desired.ValueType
) -> None:
    if state in machine.TERMINAL or (state != machine.PAUSED and desired != s.DESIRED_PAUSE):
        with pytest.raises(FailedPrecondition) as caught:
            machine.after_resume(state, desired)
        assert caught.value.value == s.JobState.Name(state).removeprefix("JOB_STATE_")
        assert caught.value.remedy
        return
    outcome = machine.after_resume(state, desired)
    assert outcome.state == state or outcome.state in machine.TRANSITIONS[state]


def test_a_job_paused_while_its_inputs_are_checked_rests_afterwards() -> None:
    assert machine.after_pause(machine.VALIDATING, False, False).state == machine.VALIDATING
    assert machine.after_inputs(True, s.DESIRED_PAUSE).state == machine.PAUSED
    assert machine.after_inputs(False, s.DESIRED_PAUSE).state == machine.FAILED


def test_a_lost_node_is_replaced_without_limit() -> None:
    history = machine.History(10_000, 0, 10_000, False)
    outcome = machine.after_attempt(
        machine.RUNNING, s.DESIRED_RUN, s.ATTEMPT_STATE_LOST, s.FAILURE_CLASS_NODE_LOST, history
    )
    assert outcome.state == machine.QUEUED


def test_a_users_error_is_tried_once_more_only_after_progress() -> None:
    def end(user_errors: int, progressed: bool) -> s.JobState.ValueType:
        history = machine.History(0, 10, user_errors, progressed)
        return machine.after_attempt(
            machine.RUNNING, s.DESIRED_RUN, s.ATTEMPT_STATE_FAILED, s.FAILURE_CLASS_USER_ERROR, history
        ).state

    assert end(0, True) == machine.QUEUED
    assert end(0, False) == machine.FAILED
    assert end(1, True) == machine.FAILED


@pytest.mark.parametrize("state", [*machine.TERMINAL, machine.FINALIZING])
def test_cancelling_what_has_ended_is_refused_with_the_state(state: s.JobState.ValueType) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        machine.after_cancel(state)
    assert caught.value.value == s.JobState.Name(state).removeprefix("JOB_STATE_")


def test_cancelling_without_processes_ends_at_once() -> None:
    assert machine.after_cancel(machine.QUEUED).state == machine.CANCELLED
    assert machine.after_cancel(machine.RUNNING).state == machine.CANCELLING


def test_an_attempt_only_goes_forward() -> None:
    order = [*machine._ATTEMPT_ORDER]
    for older, newer in product(range(len(order)), repeat=2):
        assert machine.attempt_advances(order[older], order[newer]) == (newer > older)
    for end in machine.ATTEMPT_ENDS:
        assert machine.attempt_advances(order[-1], end)
        assert not machine.attempt_advances(end, s.ATTEMPT_STATE_COMPLETED)
