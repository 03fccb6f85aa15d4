"""How fast jobs like one trained: what a quote of its time is learnt from."""

from statistics import median

from sqlalchemy import exists, select
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.api.jobs.v1 import jobs_pb2, spec_pb2
from tunesmith_jobs.tables import AttemptRow, JobRow

_NEWEST = 200  # jobs of the project that are looked at: 20 ms
_ENOUGH = 9  # jobs alike, of which the median is taken
_FEWEST_STEPS = 5  # the first ones are slower: caches are cold


def seconds_per_row(session: Session, project: str, spec: spec_pb2.JobSpec) -> tuple[float, int]:
    """Returns the median of the seconds a row took in the newest jobs like `spec`, and how many those are.

    Without any it is (0, 0). Forked jobs do not count: part of their steps were their parents'.
    """
    external = exists().where(col(AttemptRow.job_id) == col(JobRow.id), col(AttemptRow.node) == "")
    query = (
        select(col(JobRow.trained_seconds), col(JobRow.body))
        .where(col(JobRow.project) == project, col(JobRow.deleted).is_(False), col(JobRow.parent_id) == "")
        .where(~external)  # they say nothing of our pace, and there may be thousands
        .order_by(col(JobRow.id).desc())
        .limit(_NEWEST)
    )
    paces: list[float] = []
    for ended, body in session.execute(query):
        job = jobs_pb2.Job.FromString(body)
        if _kind(job.spec) == _kind(spec) and (pace := _pace(job, ended)):
            paces.append(pace)
            if len(paces) == _ENOUGH:
                break
    return (median(paces), len(paces)) if paces else (0.0, 0)


def rows_per_step(training: spec_pb2.TrainingSpec) -> int:
    """Returns how many rows a full step of a completed spec sees."""
    return training.micro_batch_size * training.gradient_accumulation_steps * training.logical_shards


def _kind(spec: spec_pb2.JobSpec) -> tuple[object, ...]:
    adapter, training = spec.adapter.WhichOneof("kind"), spec.training
    needs = (spec.resources.num_nodes, spec.resources.gpus_per_node, spec.resources.processes_per_node)
    plain = not spec.HasField("evaluation") and not spec.HasField("export")
    return (plain, spec.base_model, adapter, training.precision, training.packing, *needs)


def _pace(job: jobs_pb2.Job, ended_seconds: float) -> float:
    done = job.progress
    # Attempts that ended are summed in the row; the one under way counts in its progress.
    seconds = ended_seconds if job.terminal or not job.active else ended_seconds + done.training_seconds
    rows = done.step * rows_per_step(job.spec.training)
    return seconds / rows if done.step >= _FEWEST_STEPS and rows and seconds > 0 else 0.0
