"""The checkpoints of jobs: which are committed, which the retention rules keep, which are pinned."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.jobs.v1 import events_pb2, jobs_pb2, state_pb2
from tunesmith.errors import FailedPrecondition
from tunesmith_jobs import machine
from tunesmith_jobs.change import JobChange
from tunesmith_jobs.tables import CheckpointRow, JobRow


def commit(change: JobChange, ref: state_pb2.CheckpointRef, keep: int = 0) -> bool:
    """Enters a checkpoint that lies in the blob store, lets old ones go, and tells whether it is news.

    Only a step beyond all earlier ones is progress that refills the budgets, and only the newest step is what
    the job goes on from: a late report of an older checkpoint must not set it back. `keep` is of an external
    run: how many of the newest it keeps, 0 for all.
    """
    row = change.session.get(CheckpointRow, (change.row.id, ref.step))
    if row is not None and row.digest == ref.digest:
        return False
    if row is not None and not row.expired:
        _expire(change, row)  # another attempt made this step again: its checkpoint takes the place
    row = row or CheckpointRow(
        job_id=change.row.id, step=ref.step, epoch=0, digest="", size_bytes=0, create_time=change.now
    )
    row.epoch, row.digest, row.size_bytes, row.expired = ref.epoch, ref.digest, ref.size_bytes, False
    row.eval_loss = ref.eval_loss if ref.HasField("eval_loss") else None
    row.judged = ref.judged if ref.HasField("judged") else None
    if ref.HasField("create_time"):
        row.create_time = ref.create_time.ToDatetime(change.now.tzinfo)
    change.session.add(row)
    change.session.flush()
    job = change.job
    if ref.step > job.checkpoint.step or not job.HasField("checkpoint"):
        change.row.progressed, change.row.infra_failures, change.row.user_errors = True, 0, 0
    if ref.step >= job.checkpoint.step:
        job.checkpoint.CopyFrom(_ref(change, row))
    # Said after the rules were applied: of each checkpoint one revision says one thing.
    if job.spec.HasField("external"):
        _retain_newest(change, keep, ref.step)
    else:
        retain(change, silent_step=ref.step)
    change.say("checkpoint_committed", events_pb2.CheckpointCommitted(checkpoint=_ref(change, row)))
    return True


def commit_external(change: JobChange, ref: state_pb2.CheckpointRef, keep: int) -> state_pb2.CheckpointRef:
    """Enters a checkpoint of an external run, once, and returns what is there: one that a later program made
    at the same step stays. Saves the change."""
    row = change.session.get(CheckpointRow, (change.row.id, ref.step))
    if (row is None or row.epoch <= ref.epoch) and commit(change, ref, keep):
        change.save()
    return _ref(change, change.session.get_one(CheckpointRow, (change.row.id, ref.step)))


def let_go(change: JobChange) -> None:
    """Lets all checkpoints of an external run go, for it is being deleted: no job begins from them."""
    if change.job.spec.HasField("external"):
        for row in kept(change.session, change.row.id):
            _expire(change, row)


def _retain_newest(change: JobChange, keep: int, silent_step: int) -> None:
    for row in kept(change.session, change.row.id)[keep:] if keep else ():
        if not row.pinned:
            _expire(change, row, say=row.step != silent_step)


def retain(change: JobChange, silent_step: int | None = None) -> None:
    """Lets checkpoints go that no rule keeps: newest, best by evaluation, pinned, or begun from by a fork.

    Of an external run none go here: what it keeps it says with each checkpoint.
    """
    if change.job.spec.HasField("external"):
        return
    rows = kept(change.session, change.row.id)
    training = change.job.spec.training
    keep = {row.step for row in rows[: 1 + training.keep_checkpoints]}
    keep |= {row.step for row in rows if row.pinned}
    figures = ((row.eval_loss if row.judged is None else row.judged, -row.step) for row in rows)
    judged = sorted((figure, step) for figure, step in figures if figure is not None)
    keep |= {-step for _, step in judged[: training.keep_best_checkpoints]}
    gone = [row for row in rows if row.step not in keep]
    if gone:
        keep |= _forked_steps(change.session, change.row.id)
    for row in gone:
        if row.step not in keep:
            _expire(change, row, say=row.step != silent_step)


def _expire(change: JobChange, row: CheckpointRow, say: bool = True) -> None:
    row.expired = True
    change.session.add(row)
    if say:
        change.say("checkpoint_expired", events_pb2.CheckpointExpired(checkpoint=_ref(change, row)))


def _forked_steps(session: Session, job_id: str) -> set[int]:
    query = select(col(JobRow.body)).where(
        col(JobRow.parent_id) == job_id, col(JobRow.state).not_in(machine.TERMINAL)
    )
    return {jobs_pb2.Job.FromString(body).forked_from.step for body in session.execute(query).scalars()}


def kept(session: Session, job_id: str) -> Sequence[CheckpointRow]:
    """Returns the checkpoints of a job that have not expired, newest first."""
    query = select(CheckpointRow).where(
        col(CheckpointRow.job_id) == job_id, col(CheckpointRow.expired).is_(False)
    )
    return session.execute(query.order_by(col(CheckpointRow.step).desc())).scalars().all()


def num_of_attempt(session: Session, job_id: str, epoch: int) -> int:
    """Returns how many checkpoints an attempt has committed."""
    query = select(func.count()).where(col(CheckpointRow.job_id) == job_id, col(CheckpointRow.epoch) == epoch)
    return int(session.execute(query).scalar_one())


def pin(change: JobChange, step: int, unpin: bool) -> state_pb2.CheckpointRef:
    """Keeps a checkpoint whatever the retention rules say, or lets them decide again.

    Raises:
        FailedPrecondition: the job has no such checkpoint, or it has expired.
    """
    row = change.session.get(CheckpointRow, (change.row.id, step))
    if row is None or row.expired:
        raise missing(
            change.session, change.row.id, step, "expired" if row is not None else "never committed"
        )
    row.pinned = not unpin
    change.session.add(row)
    change.session.flush()
    if unpin:
        retain(change, silent_step=step)
    change.say("checkpoint_pinned", events_pb2.CheckpointPinned(checkpoint=_ref(change, row)))
    if row.digest == change.job.checkpoint.digest:
        change.job.checkpoint.pinned = row.pinned
    return _ref(change, row)


def missing(session: Session, job_id: str, step: int | None, why: str) -> FailedPrecondition:
    """Returns the error about a checkpoint that cannot be used, with those that can."""
    steps = ", ".join(str(row.step) for row in kept(session, job_id)[:10])
    return FailedPrecondition(
        "CHECKPOINT_MISSING",
        f"the job has no checkpoint at step {step}: {why}" if step is not None else f"the job has {why}",
        field="step",
        value="" if step is None else step,
        remedy=f"there are checkpoints at steps {steps}" if steps else "wait for its first checkpoint",
    )


def _ref(change: JobChange, row: CheckpointRow) -> state_pb2.CheckpointRef:
    ref = to_ref(row)
    ref.external = change.job.spec.HasField("external")
    return ref


def to_ref(row: CheckpointRow) -> state_pb2.CheckpointRef:
    """Returns a checkpoint as the contract has it."""
    ref = state_pb2.CheckpointRef(
        step=row.step,
        epoch=row.epoch,
        digest=row.digest,
        size_bytes=row.size_bytes,
        eval_loss=row.eval_loss,
        judged=row.judged,
        pinned=row.pinned,
        expired=row.expired,
    )
    ref.create_time.FromDatetime(row.create_time)
    return ref
