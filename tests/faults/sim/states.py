"""Stories of one job's state alone: the pure machine, without stores, services or time."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tunesmith.api.jobs.v1 import state_pb2 as s
from tunesmith.errors import FailedPrecondition
from tunesmith_jobs import machine

_MAX_INFRA_RETRIES = 1
# Failures of the infrastructure come more often than others, as in life: they have a budget to spend.
_FAILURES = [*sorted(machine.BUDGETS), *[s.FAILURE_CLASS_INFRA] * 10]
_ENDS = [*sorted(machine.ATTEMPT_ENDS), *[s.ATTEMPT_STATE_FAILED] * 5]
_INFRA = {kind for kind, budget in machine.BUDGETS.items() if budget is machine.Budget.INFRA}
_DESIRED = {
    machine.PAUSING: s.DESIRED_PAUSE,
    machine.PAUSED: s.DESIRED_PAUSE,
    machine.CANCELLING: s.DESIRED_CANCEL,
}
_MOST_TURNS = 4  # from any state to the end when nothing is in the way


class StateStory(RuleBasedStateMachine):
    """Whatever is asked and whatever happens, a job goes only where it may, and can come to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.reason = machine.VALIDATING, s.STATE_REASON_UNSPECIFIED
        self.desired = s.DESIRED_RUN
        self.infra = self.user_errors = self.retries = 0
        self.progressed = False

    @initialize(state=st.sampled_from(sorted(set(machine.TRANSITIONS) - machine.TERMINAL)))
    def begin(self, state: s.JobState.ValueType) -> None:
        # In the middle: most stories from the beginning are over before they get there.
        self.state = state
        self.desired = _DESIRED.get(state, s.DESIRED_RUN)

    def _go(self, outcome: machine.Outcome) -> None:
        before = self.state
        assert outcome.state == before or outcome.state in machine.TRANSITIONS[before], (before, outcome)
        if outcome.state == machine.PAUSED:
            assert self.desired == s.DESIRED_PAUSE, "it rests, and nobody asked for it"
        if outcome.state == machine.SUCCEEDED:
            assert before == machine.FINALIZING, "a success without an output"
        self.state, self.reason = outcome.state, outcome.reason

    @rule(mode=st.sampled_from(["save", "latest"]))
    def pause(self, mode: str) -> None:
        before, wanted = self.desired, s.DESIRED_PAUSE
        try:
            outcome = machine.after_pause(self.state, mode == "latest", self.progressed)
        except FailedPrecondition:
            assert self.desired == before
            return
        self.desired = wanted
        self._go(outcome)

    @rule()
    def resume(self) -> None:
        try:
            outcome = machine.after_resume(self.state, self.desired)
        except FailedPrecondition:
            assert self.state != machine.PAUSED, "a job that rests can always go on"
            return
        self._go(outcome)
        self.desired = s.DESIRED_RUN

    @rule(surely=st.sampled_from([True, False, False, False]))  # it ends most stories
    def cancel(self, surely: bool) -> None:
        if not surely:
            return
        try:
            outcome = machine.after_cancel(self.state)
        except FailedPrecondition:
            assert self.state in machine.TERMINAL | {machine.FINALIZING}
            return
        self.desired = s.DESIRED_CANCEL
        self._go(outcome)

    @precondition(lambda self: self.state == machine.VALIDATING)
    @rule(valid=st.booleans())
    def check_inputs(self, valid: bool) -> None:
        self._go(machine.after_inputs(valid, self.desired))

    @precondition(lambda self: self.state == machine.QUEUED)
    @rule()
    def start(self) -> None:
        self._go(machine.Outcome(machine.STARTING))

    @precondition(lambda self: self.state == machine.STARTING)
    @rule()
    def train(self) -> None:
        self._go(machine.Outcome(machine.RUNNING))

    @precondition(lambda self: self.state in machine.HAS_ATTEMPT)
    @rule()
    def commit(self) -> None:
        self.progressed, self.infra, self.user_errors, self.retries = True, 0, 0, 0

    @rule(reason=st.sampled_from(sorted(machine.STOP_REASONS)))
    def stop(self, reason: s.StateReason.ValueType) -> None:
        outcome = machine.after_stop(self.state, reason)
        if outcome is not None:
            self._go(outcome)

    @precondition(lambda self: self.state in machine.HAS_ATTEMPT)
    @rule(end=st.sampled_from(_ENDS), failure=st.sampled_from(_FAILURES))
    def end(self, end: s.AttemptState.ValueType, failure: s.FailureClass.ValueType) -> None:
        failed = end == s.ATTEMPT_STATE_FAILED
        kind = failure if failed else s.FAILURE_CLASS_UNSPECIFIED
        kind = s.FAILURE_CLASS_NODE_LOST if end == s.ATTEMPT_STATE_LOST else kind
        history = machine.History(self.infra, _MAX_INFRA_RETRIES, self.user_errors, self.progressed)
        self._go(machine.after_attempt(self.state, self.desired, end, kind, history, self.reason))
        if failed and kind in _INFRA:
            self.infra += 1
            self.retries += self.reason == s.STATE_REASON_RETRY
        self.user_errors += failed and machine.BUDGETS[kind] is machine.Budget.PROGRESS

    @precondition(lambda self: self.state == machine.FINALIZING)
    @rule(verified=st.booleans())
    def check_output(self, verified: bool) -> None:
        self._go(machine.after_output(verified))

    @invariant()
    def laws_hold(self) -> None:
        assert self.retries <= _MAX_INFRA_RETRIES, "tried again more often than the job allows"

    def teardown(self) -> None:
        """With nobody in the way it comes to its end, and stays there."""
        for _ in range(_MOST_TURNS):
            self._advance()
        assert self.state in machine.TERMINAL, s.JobState.Name(self.state)
        self.resume()
        self.cancel(True)
        assert self.state in machine.TERMINAL

    def _advance(self) -> None:
        if self.state == machine.VALIDATING:
            self.check_inputs(True)
        if self.state == machine.PAUSED:
            self.resume()
        if self.state == machine.QUEUED:
            self.start()
        if self.state in machine.HAS_ATTEMPT:
            self.end(s.ATTEMPT_STATE_COMPLETED, s.FAILURE_CLASS_UNSPECIFIED)
        if self.state == machine.FINALIZING:
            self.check_output(True)
