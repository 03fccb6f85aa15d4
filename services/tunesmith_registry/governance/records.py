"""What the registry keeps of jobs: spec, pinned inputs, who asked. Cards, lineage and `reproduce` read it,
also when the job is long deleted."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from sqlalchemy import Row, delete, insert, select
from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import events_pb2 as jobs_events_pb2
from tunesmith.api.registry.v1 import events_pb2, models_pb2
from tunesmith_registry import ledger
from tunesmith_registry.change import Caller
from tunesmith_registry.governance.tables import JOB_RECORDS


def note(
    session: Session,
    caller: Caller,
    project: str,
    job_id: str,
    event: jobs_events_pb2.JobEvent,
    good: events_pb2.JobInputsValidated,
) -> None:
    """Keeps what is known of a job whose inputs are good."""
    spec = MessageToDict(event.created.spec, preserving_proto_field_name=True)
    prompt: Any = getattr(good, "prompt_template", "")
    of = JOB_RECORDS.c
    session.execute(delete(JOB_RECORDS).where(of.project == project, of.job_id == job_id))
    session.execute(
        insert(JOB_RECORDS).values(
            project=project,
            job_id=job_id,
            spec=ledger.canonical(spec),
            forked_from=event.created.forked_from.digest,
            base_model=good.base_model,
            base_model_digest=good.base_model_digest,
            dataset_version=good.dataset_version,
            dataset_digest=good.dataset_digest,
            prompt=prompt if isinstance(prompt, str) else "",
            prompt_digest=getattr(good, "prompt_template_digest", ""),
            creator=event.actor,
            create_time=caller.now,
        )
    )


def find(session: Session, project: str, job_id: str) -> Row[Any] | None:
    """Returns the record of a job, if there is one."""
    of = JOB_RECORDS.c
    query = select(JOB_RECORDS).where(of.project == project, of.job_id == job_id)
    return session.execute(query).one_or_none()


def of_version(session: Session, job: str) -> Row[Any] | None:
    """Returns the record of the job named as a resource; None for no job."""
    parts = job.split("/")
    return find(session, parts[1], parts[3]) if len(parts) == 4 else None


def inputs_of(session: Session, project: str, job_id: str, targets: Sequence[str]) -> models_pb2.ModelVersion:
    """Returns what a version says of the inputs of its job: their digests, and of a conversion its source."""
    record = find(session, project, job_id)
    said = models_pb2.ModelVersion(derived_from=targets[0] if targets else "")
    if record is not None:
        said.base_model_digest, said.dataset_digest = record.base_model_digest, record.dataset_digest
    return said
