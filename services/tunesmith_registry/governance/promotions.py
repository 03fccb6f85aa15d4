"""Moves between stages as the policy wants them: gates, a second person, rollback."""

from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import events_pb2, models_pb2, stages_pb2
from tunesmith.errors import FailedPrecondition, NotFound, PermissionDenied
from tunesmith_kit import outbox, subjects
from tunesmith_kit.ids import new_ulid
from tunesmith_registry import transitions, versions
from tunesmith_registry.change import Caller, say
from tunesmith_registry.governance import gates, policies
from tunesmith_registry.governance.tables import PROMOTIONS
from tunesmith_registry.store import cursor_numbers
from tunesmith_registry.tables import STAGE_CHANGES

OPEN = stages_pb2.PROMOTION_STATE_OPEN
APPROVED = stages_pb2.PROMOTION_STATE_APPROVED
REJECTED = stages_pb2.PROMOTION_STATE_REJECTED


def move(
    session: Session,
    caller: Caller,
    version: models_pb2.ModelVersion,
    stage: transitions.Stage,
    reason: str,
    *,
    approved: bool = False,
) -> models_pb2.ModelVersion:
    """Moves a version to a stage if transitions, policy and gates allow it.

    Raises:
        FailedPrecondition: they do not; what is missing is named.
    """
    _, project, _, model_id, *_ = version.name.split("/")
    transitions.check_stage(stage)
    if version.stage == stage:
        return version
    transitions.check(version.stage, stage)
    policy = policies.in_force(session, project, model_id)
    if stage == transitions.PRODUCTION and policy.approval_required and not approved:
        raise FailedPrecondition(
            "APPROVAL_REQUIRED",
            f"a second person must approve that {model_id}@{version.version} becomes Production",
            field="stage",
            value=transitions.word(stage),
            remedy="ask for it (RequestPromotion, `tunesmith models stage` does); another person then "
            "approves it with `tunesmith models approve`",
        )
    gates.demand(gates.check(session, project, policy, version, stage), version)
    return versions.set_stage(session, caller, project, model_id, version.version, stage, reason)


def request(
    session: Session,
    caller: Caller,
    version: models_pb2.ModelVersion,
    stage: transitions.Stage,
    reason: str,
) -> stages_pb2.Promotion:
    """Enters a request; gates are looked at already now, so that nobody is asked in vain.

    Raises:
        FailedPrecondition: the move is impossible, a gate is not passed, or a request is open.
    """
    _, project, _, model_id, *_ = version.name.split("/")
    transitions.check_stage(stage)
    if version.stage == stage:
        raise _conflict(f"{model_id}@{version.version} is in {transitions.word(stage)} already", version.name)
    transitions.check(version.stage, stage)
    _refuse_second(session, project, model_id, version.version, stage)
    policy = policies.in_force(session, project, model_id)
    gates.demand(gates.check(session, project, policy, version, stage), version)
    promotion_id = new_ulid()
    made = stages_pb2.Promotion(
        name=f"projects/{project}/models/{model_id}/promotions/{promotion_id}",
        version=version.name,
        stage=stage,
        state=OPEN,
        requester=caller.actor,
        reason=reason,
        create_time=outbox.timestamp(caller.now),
    )
    session.execute(
        insert(PROMOTIONS).values(
            project=project,
            model_id=model_id,
            id=promotion_id,
            version=version.version,
            state=OPEN,
            body=made.SerializeToString(),
        )
    )
    row = versions.model_row(session, project, model_id)
    event = events_pb2.PromotionRequested(promotion=made)
    subject = subjects.event(project, "model", row.uid, "promotion_requested")
    say(session, caller, subject, "promotion_requested", event, resource=made.name)
    return made


def decide(
    session: Session,
    caller: Caller,
    key: tuple[str, str, str],
    state: stages_pb2.PromotionState.ValueType,
    reason: str,
) -> tuple[stages_pb2.Promotion, models_pb2.ModelVersion]:
    """Approves or rejects a request; `key` is project, model and promotion.

    Raises:
        NotFound: there is no such request.
        PermissionDenied: who asked wants to approve.
        FailedPrecondition: it is decided already, or the move is not possible any more.
    """
    project, model_id, promotion_id = key
    found = stages_pb2.Promotion.FromString(_row(session, *key).body)
    if found.state != OPEN:
        word = stages_pb2.PromotionState.Name(found.state).removeprefix("PROMOTION_STATE_").lower()
        raise _conflict(f"the request was {word} by {found.decider} before", found.name)
    if state == APPROVED and found.requester == caller.actor:
        raise PermissionDenied(
            "SELF_APPROVAL",
            f"{caller.actor} asked for it and cannot approve it",
            field="name",
            value=found.name,
            remedy="let another person approve it",
        )
    found.state, found.decider, found.decision_reason = state, caller.actor, reason
    found.decide_time.FromDatetime(caller.now)
    number = int(found.version.rpartition("/")[2])
    version = versions.version(session, project, model_id, number)
    if state == APPROVED:
        because = reason or found.reason or f"approved by {caller.actor}"
        version = move(session, caller, version, found.stage, because, approved=True)
    of = PROMOTIONS.c
    session.execute(
        update(PROMOTIONS)
        .where(of.project == project, of.model_id == model_id, of.id == promotion_id)
        .values(state=state, body=found.SerializeToString())
    )
    row = versions.model_row(session, project, model_id)
    event = events_pb2.PromotionDecided(promotion=found)
    subject = subjects.event(project, "model", row.uid, "promotion_decided")
    say(session, caller, subject, "promotion_decided", event, resource=found.name)
    return found, version


def roll_back(
    session: Session, caller: Caller, project: str, model_id: str, reason: str
) -> tuple[models_pb2.ModelVersion, models_pb2.ModelVersion]:
    """Makes the version before the present one Production again, without gates and approval: it was in use.

    Raises:
        FailedPrecondition: none is in Production, or none was before it.
    """
    versions.model_row(session, project, model_id)
    live = versions.in_stage(session, project, model_id, transitions.PRODUCTION)
    if not live:
        raise _conflict(f"no version of {model_id} is in Production", model_id)
    for number in reversed(_before(session, project, model_id, live[0].version)):
        try:
            versions.version(session, project, model_id, number)
        except NotFound:
            continue  # deleted since
        because = reason or f"rollback from version {live[0].version}"
        now = versions.set_stage(
            session,
            caller,
            project,
            model_id,
            number,
            transitions.PRODUCTION,
            because,
            rolled_back=True,
        )
        return now, versions.version(session, project, model_id, live[0].version)
    raise _conflict(f"no version of {model_id} was in Production before {live[0].version}", model_id)


def _before(session: Session, project: str, model_id: str, present: int) -> list[int]:
    """Versions that were in Production before the present one, oldest first. A rollback undoes a promotion,
    so a second one goes further back instead of forth again."""
    of = STAGE_CHANGES.c
    query = select(of.version, of.body).where(
        of.project == project, of.model_id == model_id, of.to_stage == transitions.PRODUCTION
    )
    stack: list[int] = []
    for row in session.execute(query.order_by(of.sequence)):
        if stages_pb2.StageChange.FromString(row.body).rolled_back:
            while stack and stack[-1] != row.version:
                stack.pop()
        if not stack or stack[-1] != row.version:
            stack.append(row.version)
    while stack and stack[-1] == present:
        stack.pop()
    return stack


def page(
    session: Session, project: str, model_id: str, before: str, size: int, only_open: bool
) -> tuple[list[stages_pb2.Promotion], str]:
    """Requests of a model, newest first, and the cursor to the next page."""
    versions.model_row(session, project, model_id)
    of = PROMOTIONS.c
    query = select(of.id, of.body).where(of.project == project, of.model_id == model_id)
    query = query.where(of.state == OPEN) if only_open else query
    query = query.where(of.id < before) if before else query
    rows = session.execute(query.order_by(of.id.desc()).limit(size + 1)).all()
    cursor = rows[size - 1].id if len(rows) > size else ""
    return [stages_pb2.Promotion.FromString(row.body) for row in rows[:size]], cursor


def change_page(
    session: Session, project: str, model_id: str, before: str, size: int
) -> tuple[list[stages_pb2.StageChange], str]:
    """Changes of stage of a model, newest first, and the cursor to the next page."""
    versions.model_row(session, project, model_id)
    of = STAGE_CHANGES.c
    query = select(of.sequence, of.body).where(of.project == project, of.model_id == model_id)
    if before:
        query = query.where(of.sequence < cursor_numbers(before, 1)[0])
    rows = session.execute(query.order_by(of.sequence.desc()).limit(size + 1)).all()
    cursor = str(rows[size - 1].sequence) if len(rows) > size else ""
    return [stages_pb2.StageChange.FromString(row.body) for row in rows[:size]], cursor


def _row(session: Session, project: str, model_id: str, promotion_id: str) -> Row[Any]:
    of = PROMOTIONS.c
    query = select(of.body).where(of.project == project, of.model_id == model_id, of.id == promotion_id)
    row = session.execute(query).one_or_none()
    if row is None:
        raise NotFound(
            "PROMOTION_NOT_FOUND",
            f"the model {model_id} has no request {promotion_id}",
            field="name",
            value=promotion_id,
            remedy=f"`tunesmith models promotions {model_id}` lists them",
        )
    return row


def _refuse_second(
    session: Session, project: str, model_id: str, version: int, stage: transitions.Stage
) -> None:
    of = PROMOTIONS.c
    query = select(of.body).where(
        of.project == project, of.model_id == model_id, of.version == version, of.state == OPEN
    )
    for body in session.execute(query).scalars():
        other = stages_pb2.Promotion.FromString(body)
        if other.stage == stage:
            raise _conflict(f"{other.requester} has asked for the same already", other.name)


def _conflict(problem: str, value: str) -> FailedPrecondition:
    return FailedPrecondition(
        "STATE_CONFLICT",
        problem,
        field="name",
        value=value,
        remedy="`tunesmith models promotions MODEL` and `tunesmith models versions MODEL` show how it stands",
    )
