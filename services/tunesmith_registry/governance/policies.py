"""What has to hold before versions rise: of a model, else of the project, else nothing."""

import math

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import events_pb2, models_pb2, stages_pb2
from tunesmith.errors import InvalidArgument, PermissionDenied
from tunesmith_kit import subjects
from tunesmith_registry import transitions, versions
from tunesmith_registry.change import Caller, say
from tunesmith_registry.governance.tables import MODEL_POLICIES

PROJECT_WIDE = "-"
_EVERY = "all"  # stands in the subject where a model's ULID would
_BOUNDS = ("at_least", "at_most", "worse_by_at_most")


def own(session: Session, project: str, model_id: str) -> stages_pb2.ModelPolicy | None:
    """Returns the policy that was set for exactly this model (or `-`), if one was."""
    of = MODEL_POLICIES.c
    query = select(of.body).where(of.project == project, of.model_id == model_id)
    body = session.execute(query).scalar_one_or_none()
    return stages_pb2.ModelPolicy.FromString(body) if body is not None else None


def in_force(session: Session, project: str, model_id: str) -> stages_pb2.ModelPolicy:
    """Returns the policy that holds for a model."""
    found = own(session, project, model_id) or own(session, project, PROJECT_WIDE)
    return found or stages_pb2.ModelPolicy()


def replace(
    session: Session, caller: Caller, role: str, project: str, model_id: str, wanted: stages_pb2.ModelPolicy
) -> stages_pb2.ModelPolicy:
    """Sets a policy.

    Raises:
        InvalidArgument: a gate has no bound, or one that is no number.
        PermissionDenied: who is no admin wants to do without the second person.
    """
    for index, gate in enumerate(wanted.gates):
        _check(gate, f"policy.gates[{index}]")
    uid = versions.model_row(session, project, model_id).uid if model_id != PROJECT_WIDE else _EVERY
    if in_force(session, project, model_id).approval_required and not wanted.approval_required:
        _need_admin(role)
    policy = stages_pb2.ModelPolicy()
    policy.CopyFrom(wanted)
    policy.name = f"projects/{project}/models/{model_id}"
    of = MODEL_POLICIES.c
    session.execute(delete(MODEL_POLICIES).where(of.project == project, of.model_id == model_id))
    session.execute(
        insert(MODEL_POLICIES).values(project=project, model_id=model_id, body=policy.SerializeToString())
    )
    event = events_pb2.ModelPolicyChanged(policy=policy)
    subject = subjects.event(project, "model", uid, "policy_changed")
    say(session, caller, subject, "model_policy_changed", event, resource=policy.name)
    return policy


def _need_admin(role: str) -> None:
    if role not in ("admin", "service"):
        raise PermissionDenied(
            "PERMISSION_MISSING",
            "only an admin may do away with the approval by a second person",
            field="policy.approval_required",
            value=role,
            remedy="ask an admin, or keep approval_required",
        )


def _check(gate: stages_pb2.Gate, path: str) -> None:
    given = [name for name in _BOUNDS if gate.HasField(name)]  # type: ignore[arg-type]
    if not given:
        raise InvalidArgument(
            "FIELD_INVALID",
            f"the gate on {gate.metric} has no bound",
            field=path,
            value=gate.metric,
            remedy="give at_least, at_most or worse_by_at_most",
        )
    for name in given:
        if not math.isfinite(getattr(gate, name)):
            raise InvalidArgument(
                "FIELD_INVALID",
                f"the bound of {gate.metric} is no number",
                field=f"{path}.{name}",
                value=getattr(gate, name),
                remedy="give a finite number",
            )
    if gate.stage not in (models_pb2.MODEL_STAGE_UNSPECIFIED, transitions.STAGING, transitions.PRODUCTION):
        raise InvalidArgument(
            "FIELD_INVALID",
            "a gate guards Staging or Production",
            field=f"{path}.stage",
            value=transitions.word(gate.stage),
            remedy="use MODEL_STAGE_STAGING or MODEL_STAGE_PRODUCTION",
        )
