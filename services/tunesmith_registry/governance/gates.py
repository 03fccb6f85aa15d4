"""Whether the evaluations of a version satisfy a policy. Every result says value, bound and what to do."""

import math
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import models_pb2, stages_pb2
from tunesmith.errors import FailedPrecondition, Violation
from tunesmith_registry import transitions, versions
from tunesmith_registry.evaluations.tables import EVALUATION_SCORES


@dataclass(frozen=True, slots=True)
class Score:
    """The newest value of a metric of one target on one dataset version."""

    value: float
    dataset_version: str
    evaluation: str
    higher_is_better: bool


def check(
    session: Session,
    project: str,
    policy: stages_pb2.ModelPolicy,
    version: models_pb2.ModelVersion,
    stage: transitions.Stage,
) -> list[stages_pb2.GateResult]:
    """Returns one result for each gate that guards a stage."""
    model_id = version.name.split("/")[3]
    live = versions.in_stage(session, project, model_id, transitions.PRODUCTION)
    production = live[0] if live and live[0].version != version.version else None
    return [
        _judge(session, project, gate, version, production)
        for gate in policy.gates
        if (gate.stage or transitions.PRODUCTION) == stage
    ]


def demand(results: list[stages_pb2.GateResult], version: models_pb2.ModelVersion) -> None:
    """Raises `FailedPrecondition` that names each gate that is not passed."""
    failed = [result for result in results if not result.passed]
    if not failed:
        return
    raise FailedPrecondition(
        "GATE_FAILED",
        "; ".join(result.message for result in failed),
        field=failed[0].gate.metric,
        value=failed[0].value if failed[0].HasField("value") else "not evaluated",
        remedy=_remedy(failed[0], version),
        violations=[
            Violation(
                f"gates[{result.gate.metric}]",
                str(result.value) if result.HasField("value") else "not evaluated",
                result.message,
                _remedy(result, version),
            )
            for result in failed
        ],
    )


def _remedy(result: stages_pb2.GateResult, version: models_pb2.ModelVersion) -> str:
    if result.HasField("value"):
        return "train or choose a version that is better there, or change the policy"
    return f"evaluate it first: {_command(result.gate, version)}"


def _command(gate: stages_pb2.Gate, version: models_pb2.ModelVersion) -> str:
    model_id = version.name.split("/")[3]
    dataset = gate.dataset or "DATASET"
    return f"`tunesmith evaluate {model_id}@{version.version} --dataset {dataset} --scorer {gate.metric}`"


def _judge(
    session: Session,
    project: str,
    gate: stages_pb2.Gate,
    version: models_pb2.ModelVersion,
    production: models_pb2.ModelVersion | None,
) -> stages_pb2.GateResult:
    result = stages_pb2.GateResult(gate=gate)
    where = f"{gate.metric} on {gate.dataset or 'any dataset'}"
    found = newest(session, project, version, gate.metric, gate.dataset)
    if found is None:
        result.message = f"{where} was not evaluated: {_command(gate, version)}"
        return result
    result.value, result.evaluation = found.value, found.evaluation
    problems = _bounds(gate, found.value)
    if gate.HasField("worse_by_at_most") and production is not None:
        problems += _compared(session, project, gate, found, production, result)
    result.passed = not problems
    result.message = f"{where} is {found.value:.6g}" + (f", {' and '.join(problems)}" if problems else "")
    return result


def _bounds(gate: stages_pb2.Gate, value: float) -> list[str]:
    if math.isnan(value):
        return ["which is no number"]
    problems = []
    if gate.HasField("at_least") and value < gate.at_least:
        problems.append(f"below the bound {gate.at_least:.6g}")
    if gate.HasField("at_most") and value > gate.at_most:
        problems.append(f"above the bound {gate.at_most:.6g}")
    return problems


def _compared(
    session: Session,
    project: str,
    gate: stages_pb2.Gate,
    found: Score,
    production: models_pb2.ModelVersion,
    result: stages_pb2.GateResult,
) -> list[str]:
    """Compares with the version in Production, on the very same dataset version."""
    theirs = newest(session, project, production, gate.metric, found.dataset_version)
    if theirs is None:
        return [
            f"but version {production.version} in Production was not evaluated there: "
            + _command(gate, production)
        ]
    result.production_value = theirs.value
    smaller_is_better = gate.smaller_is_better or not found.higher_is_better
    worse_by = found.value - theirs.value if smaller_is_better else theirs.value - found.value
    # Written so that a NaN does not pass.
    if worse_by <= gate.worse_by_at_most:
        return []
    return [
        f"worse than Production's {theirs.value:.6g} by {worse_by:.6g}, more than {gate.worse_by_at_most:.6g}"
    ]


def newest(
    session: Session, project: str, version: models_pb2.ModelVersion, metric: str, dataset: str
) -> Score | None:
    """Returns the newest score of exactly this content; `dataset` is `id`, `id@version`, a name or empty."""
    of = EVALUATION_SCORES.c
    query = select(of.value, of.dataset_version, of.evaluation, of.higher_is_better).where(
        of.project == project,
        of.target == version.name,
        of.target_digest == version.digest,
        of.metric == metric,
    )
    if dataset.startswith("projects/"):
        query = query.where(of.dataset_version == dataset)
    elif dataset:
        dataset_id, _, number = dataset.partition("@")
        prefix = f"projects/{project}/datasets/{dataset_id}/versions/"
        same = of.dataset_version == prefix + number if number else of.dataset_version.startswith(prefix)
        query = query.where(same)
    row = session.execute(query.order_by(of.create_time.desc(), of.evaluation.desc()).limit(1)).one_or_none()
    if row is None:
        return None
    name = f"projects/{project}/evaluations/{row.evaluation}"
    return Score(row.value, row.dataset_version, name, row.higher_is_better)
