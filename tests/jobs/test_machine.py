"""The state machine: total over every combination, and legal in every step."""

from itertools import product

import pytest

from tunesmith.api.jobs.v1 import state_pb2 as s
from tunesmith.errors import FailedPrecondition
from tunesmith_jobs import machine

STATES = [value for name, value in s.JobState.items() if value]
DESIRED = [value for name, value in s.Desired.items() if value]
FAILURES = [value for name, value in s.FailureClass.items()]
HISTORIES = [
    machine.History(infra, limit, user, progressed)
    for infra, limit, user, progressed in product((0, 3), (0, 3), (0, 1), (False, True))
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
    for state, desired, end, failure, history in product(
        machine.HAS_ATTEMPT, DESIRED, machine.ATTEMPT_ENDS, FAILURES, HISTORIES
    ):
        outcome = machine.after_attempt(state, desired, end, failure, history)
        assert outcome.state in machine.TRANSITIONS[state], (state, desired, end, failure, history)
        assert outcome.state not in machine.HAS_ATTEMPT, "no attempt is left to wait for"
        walked += 1
    assert walked == 4 * 4 * 5 * 14 * 16


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
        s.FAILURE_CLASS_OOM,
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
