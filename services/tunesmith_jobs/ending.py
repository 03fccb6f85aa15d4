"""The end of an attempt: what it used up, where its job goes, and its node's slot given back."""

from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import events_pb2, jobs_pb2, spec_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_jobs import machine
from tunesmith_jobs.change import JobChange, save_attempt, save_node
from tunesmith_jobs.stopping import kill
from tunesmith_jobs.tables import AttemptRow, NodeRow

_BY_ITSELF = (state_pb2.ATTEMPT_STATE_COMPLETED, state_pb2.ATTEMPT_STATE_CHECKPOINTED)


def end_attempt(
    change: JobChange,
    row: AttemptRow,
    end: state_pb2.AttemptState.ValueType,
    failure: state_pb2.Failure | None = None,
) -> None:
    """Ends an attempt and takes its job where the state machine says; frees the node's slot."""
    job = change.job
    kind = failure.failure_class if failure is not None else state_pb2.FAILURE_CLASS_UNSPECIFIED
    history = machine.History(
        change.row.infra_failures,
        job.spec.retry.max_infra_retries,
        change.row.user_errors,
        change.row.progressed,
        may_halve=_may_halve(job),
    )
    row.failure_class = kind
    save_attempt(change, row, end, failure)
    _count_time(change, row)
    outcome = machine.after_attempt(job.state, job.desired, end, kind, history, job.state_reason)
    if end == state_pb2.ATTEMPT_STATE_FAILED:
        _spend(change, kind)
    if outcome.state == machine.QUEUED and kind == state_pb2.FAILURE_CLASS_OOM:
        _halve(change, row)
    if outcome.state == machine.QUEUED and outcome.reason != state_pb2.STATE_REASON_MOVED:
        job.ClearField("move")
    change.row.last_node = row.node
    change.move(outcome, _late(job) if outcome.reason == state_pb2.STATE_REASON_RUN_DEADLINE else failure)
    for node in sorted(row.gpus):
        free_node(change, node)
    if end not in _BY_ITSELF:
        _end_others(change, row)


def _end_others(change: JobChange, row: AttemptRow) -> None:
    """Ends what may be left of an attempt on several nodes, but on the one whose agent told of the end."""
    if len(row.gpus) > 1:
        kill(change, row, [node for node in row.gpus if f"nodes/{node}" != change.actor])


def _spend(change: JobChange, kind: state_pb2.FailureClass.ValueType) -> None:
    budget = machine.BUDGETS.get(kind, machine.Budget.INFRA)
    if budget is machine.Budget.INFRA:
        change.row.infra_failures += 1
    elif budget is machine.Budget.PROGRESS:
        change.row.user_errors += 1


def _count_time(change: JobChange, row: AttemptRow) -> None:
    """Adds the attempt's training time to the job's: as its trainer measured it, else by our clock."""
    attempt = state_pb2.Attempt.FromString(row.body)
    if not row.trained_seconds and attempt.HasField("start_time"):
        span = attempt.end_time.ToMilliseconds() - attempt.start_time.ToMilliseconds()
        row.trained_seconds = max(0.0, span / 1e3)
    change.row.trained_seconds += row.trained_seconds


def _may_halve(job: jobs_pb2.Job) -> bool:
    divisor = 2 * (job.micro_batch_divisor or 1)
    allowed = job.spec.retry.oom_policy == spec_pb2.OOM_POLICY_HALVE_MICRO_BATCH
    # Only whole micro-batches keep the global batch what it was.
    return allowed and job.spec.training.micro_batch_size % divisor == 0


def _halve(change: JobChange, row: AttemptRow) -> None:
    size, before = change.job.spec.training.micro_batch_size, change.job.micro_batch_divisor or 1
    change.job.micro_batch_divisor = 2 * before
    drift = f"micro_batch_size: {size // before} -> {size // (2 * before)}"
    change.say("drifted", events_pb2.AttemptDrifted(drift=[drift]), epoch=row.epoch)
    not_identical(change, [drift])


def not_identical(change: JobChange, drift: list[str]) -> None:
    """Notes on the job that its bits are no longer those of an undisturbed run."""
    change.note("BitIdentical", "DRIFT", "; ".join(drift))


def _late(job: jobs_pb2.Job) -> state_pb2.Failure:
    limit = job.spec.deadlines.run.ToJsonString()
    return state_pb2.Failure(
        failure_class=state_pb2.FAILURE_CLASS_RUN_DEADLINE,
        reason="RUN_DEADLINE",
        message=f"it trained longer than the {limit} of spec.deadlines.run",
        remedy="its last checkpoint is kept: fork it with a longer `deadlines.run`",
    )


def free_node(change: JobChange, node_id: str) -> None:
    """Takes the job off a node's list; a draining node that is empty now is only cordoned any more."""
    row = change.session.get(NodeRow, node_id, with_for_update=True)
    if row is None:
        return
    node = nodes_pb2.Node.FromString(row.body)
    if change.job.name in node.jobs:
        node.jobs.remove(change.job.name)
        if not settle_drain(change.session, row, node, change):
            save_node(change.session, row, node, change.now)


def settle_drain(session: Session, row: NodeRow, node: nodes_pb2.Node, change: JobChange) -> bool:
    """Ends the draining of a node that holds no attempt any more; tells whether it did (and saved)."""
    if node.state != nodes_pb2.NODE_STATE_DRAINING or node.jobs:
        return False
    moved = node_events_pb2.NodeStateChanged(
        from_state=node.state, to_state=nodes_pb2.NODE_STATE_CORDONED, message="drained: it is empty"
    )
    node.state = nodes_pb2.NODE_STATE_CORDONED
    save_node(session, row, node, change.now, "state_changed", moved)
    return True
