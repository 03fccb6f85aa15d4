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
    found = own(session, project, model_id) or own(session, project, PROJECT_WIDE) or stages_pb2.ModelPolicy()
    if model_id != PROJECT_WIDE:
        found.ClearField("remote_code_digests")  # about base models, which belong to the project
    return found


def allowed_code(session: Session, project: str) -> frozenset[str]:
    """Returns the digests of base models that may name classes of their own."""
    policy = own(session, project, PROJECT_WIDE)
    return frozenset(policy.remote_code_digests if policy else ())


def replace(
    session: Session, caller: Caller, role: str, project: str, model_id: str, wanted: stages_pb2.ModelPolicy
) -> stages_pb2.ModelPolicy:
    """Sets a policy.

    Raises:
        InvalidArgument: a gate has no bound, or one that is no number; or a model's policy allows code.
        PermissionDenied: who is no admin wants to do without the second person, or to allow code.
    """
    for index, gate in enumerate(wanted.gates):
        _check(gate, f"policy.gates[{index}]")
    uid = versions.model_row(session, project, model_id).uid if model_id != PROJECT_WIDE else _EVERY
    if in_force(session, project, model_id).approval_required and not wanted.approval_required:
        _need_admin(role, "do away with the approval by a second person", "approval_required")
    _check_code(session, role, project, model_id, wanted)
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


def _check_code(
    session: Session, role: str, project: str, model_id: str, wanted: stages_pb2.ModelPolicy
) -> None:
    if wanted.remote_code_digests and model_id != PROJECT_WIDE:
        raise InvalidArgument(
            "FIELD_INVALID",
            "base models belong to the project, not to a model",
            field="policy.remote_code_digests",
            value=wanted.remote_code_digests[0],
            remedy="set it in the policy of the project, the model `-`",
        )
    if model_id == PROJECT_WIDE and set(wanted.remote_code_digests) - allowed_code(session, project):
        _need_admin(role, "allow base models with classes of their own", "remote_code_digests")


def _need_admin(role: str, what: str, field: str) -> None:
    if role not in ("admin", "service"):
        raise PermissionDenied(
            "PERMISSION_MISSING",
            f"only an admin may {what}",
            field=f"policy.{field}",
            value=role,
            remedy=f"ask an admin, or leave {field} as it is",
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
