"""Evaluations in the database: enter, find, list."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import exists, insert, or_, select
from sqlalchemy.orm import Session

from tunesmith.api.jobs.v1 import evaluation_pb2
from tunesmith.api.registry.v1 import evaluations_pb2 as pb
from tunesmith.errors import NotFound
from tunesmith_kit.clock import utc
from tunesmith_kit.db import next_revision
from tunesmith_registry.change import Caller
from tunesmith_registry.evaluations.tables import EVALUATION_SCORES, EVALUATIONS
from tunesmith_registry.store import cursor_numbers
from tunesmith_registry.tables import REVISION


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a list is limited to; empty: nothing."""

    target: str = ""
    dataset: str = ""


def find(session: Session, project: str, evaluation_id: str) -> pb.Evaluation:
    """Returns one evaluation; `NotFound` when there is none of this id."""
    of = EVALUATIONS.c
    query = select(of.body).where(of.project == project, of.id == evaluation_id)
    body = session.execute(query).scalar_one_or_none()
    if body is None:
        raise NotFound(
            "EVALUATION_NOT_FOUND",
            f"there is no evaluation {evaluation_id}",
            field="name",
            value=evaluation_id,
            remedy="`tunesmith evaluations list` lists them; one that still runs is a job: `tunesmith jobs`",
        )
    return pb.Evaluation.FromString(body)


def page(
    session: Session, project: str, wanted: Wanted, before: str, size: int
) -> tuple[list[pb.Evaluation], str]:
    """Evaluations, newest first, and the cursor to the next page; empty when this was the last."""
    of, scores = EVALUATIONS.c, EVALUATION_SCORES.c
    query = select(of.revision, of.body).where(of.project == project)
    if wanted.target:
        query = query.where(
            exists().where(
                scores.project == of.project, scores.evaluation == of.id, scores.target == wanted.target
            )
        )
    if wanted.dataset:
        versions = f"{wanted.dataset}/versions/"
        query = query.where(
            or_(
                of.dataset_version == wanted.dataset, of.dataset_version.startswith(versions, autoescape=True)
            )
        )
    if before:
        query = query.where(of.revision < cursor_numbers(before, 1)[0])
    rows = session.execute(query.order_by(of.revision.desc()).limit(size + 1)).all()
    found = [pb.Evaluation.FromString(row.body) for row in rows[:size]]
    return found, str(rows[size - 1].revision) if len(rows) > size else ""


def enter(
    session: Session, caller: Caller, project: str, made: pb.Evaluation, base_digest: str
) -> pb.Evaluation:
    """Enters an evaluation with its scores; the same one when it is there already."""
    of = EVALUATIONS.c
    query = select(of.body).where(of.project == project, of.id == made.evaluation_id)
    known = session.execute(query).scalar_one_or_none()
    if known is not None:
        return pb.Evaluation.FromString(known)
    made.create_time.FromDatetime(utc(caller.now))
    session.execute(
        insert(EVALUATIONS).values(
            project=project,
            id=made.evaluation_id,
            revision=next_revision(session, REVISION),
            job=made.job,
            dataset_version=made.dataset_version,
            dataset_digest=made.dataset_digest,
            digest=made.digest,
            create_time=caller.now,
            body=made.SerializeToString(),
        )
    )
    session.execute(insert(EVALUATION_SCORES), _score_rows(caller, project, made, base_digest))
    return made


def _score_rows(
    caller: Caller, project: str, made: pb.Evaluation, base_digest: str
) -> Sequence[dict[str, object]]:
    targets: Sequence[evaluation_pb2.PinnedTarget] = made.targets
    return [
        {
            "project": project,
            "evaluation": made.evaluation_id,
            "target_index": score.target_index,
            "metric": score.metric,
            "target": score.target,
            "target_digest": targets[score.target_index].digest or base_digest,
            "dataset_version": made.dataset_version,
            "value": score.value,
            "ci_low": score.ci_low,
            "ci_high": score.ci_high,
            "num_samples": score.num_samples,
            "higher_is_better": score.higher_is_better,
            "create_time": caller.now,
        }
        for score in made.scores
    ]
