"""Lineage: what came from what, as nodes and edges, read from rows by a walk in both directions."""

import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import datasets_pb2, lineage_pb2, models_pb2, stages_pb2
from tunesmith.errors import InvalidArgument, NotFound
from tunesmith_registry import store, targets, transitions
from tunesmith_registry.evaluations.tables import EVALUATION_SCORES, EVALUATIONS
from tunesmith_registry.governance import records
from tunesmith_registry.governance.tables import JOB_RECORDS
from tunesmith_registry.tables import CHECKPOINTS, DATASET_VERSIONS, MODEL_VERSIONS, STAGE_CHANGES

UP, DOWN = lineage_pb2.LINEAGE_DIRECTION_UPSTREAM, lineage_pb2.LINEAGE_DIRECTION_DOWNSTREAM
_MOST_NODES = 1000
_DEPTH = 8
# (name of the other node, how it is related)
Step = tuple[str, str]

_FORMS = {
    "dataset": r"projects/[^/]+/datasets/[^/]+/versions/\d+",
    "prompt": r"projects/[^/]+/prompts/[^/]+/versions/\d+",
    "base_model": r"projects/[^/]+/baseModels/[^/]+",
    "checkpoint": r"projects/[^/]+/jobs/[^/]+/checkpoints/[0-9a-f]+",
    "attempt": r"projects/[^/]+/jobs/[^/]+/attempts/\d+",
    "job": r"projects/[^/]+/jobs/[^/]+",
    "stage_change": r"projects/[^/]+/models/[^/]+/stageChanges/\d+",
    "model": r"projects/[^/]+/models/[^/]+/versions/[^/]+",
    "evaluation": r"projects/[^/]+/evaluations/[^/]+",
}


def lineage(
    session: Session,
    project: str,
    name: str,
    direction: lineage_pb2.LineageDirection.ValueType,
    depth: int,
) -> lineage_pb2.GetLineageResponse:
    """Walks from a node.

    Raises:
        InvalidArgument: the name is that of nothing that has a lineage.
        NotFound: there is no such thing.
    """
    name = _pinned(session, project, name)
    answer = lineage_pb2.GetLineageResponse()
    walk = _Walk(session, project, answer)
    if not walk.enter(name, 0):
        raise NotFound(
            "ROUTE_NOT_FOUND", f"there is no {name}", field="name", value=name,
            remedy="`tunesmith models versions MODEL` and `tunesmith datasets list` show names",
        )  # fmt: skip
    for way, sign in ((UP, -1), (DOWN, 1)):
        if direction in (way, lineage_pb2.LINEAGE_DIRECTION_UNSPECIFIED, lineage_pb2.LINEAGE_DIRECTION_BOTH):
            walk.go(name, sign, depth or _DEPTH)
    return answer


def _pinned(session: Session, project: str, name: str) -> str:
    if kind_of(name) is None or name.split("/")[1] != project:
        raise InvalidArgument(
            "NAME_INVALID",
            "this names nothing of this project that has a lineage",
            field="name",
            value=name,
            remedy="name a dataset version, prompt version, base model, job, checkpoint, model version or "
            "evaluation",
        )
    if kind_of(name) == "model":
        parts = name.split("/")
        return targets.version_of(session, project, parts[3], parts[5]).name
    return name


def kind_of(name: str) -> str | None:
    """Returns what a resource name names, or None."""
    return next((kind for kind, form in _FORMS.items() if re.fullmatch(form, name)), None)


class _Walk:
    def __init__(self, session: Session, project: str, answer: lineage_pb2.GetLineageResponse) -> None:
        self._session, self._project, self._answer = session, project, answer
        self._edges: set[tuple[str, str]] = set()
        self._known: dict[str, bool] = {}
        self._source = Source(session, project)

    def go(self, start: str, sign: int, depth: int) -> None:
        waiting, seen = deque([(start, 0)]), {start}
        while waiting:
            name, distance = waiting.popleft()
            if distance == depth:
                continue
            for other, relation in self._source.steps(name, sign):
                if not self.enter(other, sign * (distance + 1)):
                    continue
                self._link(name, other, relation, sign)
                if other not in seen:
                    seen.add(other)
                    waiting.append((other, distance + 1))

    def enter(self, name: str, distance: int) -> bool:
        """Adds a node; False when there is no such thing or no more room."""
        if name in self._known:
            return self._known[name]
        if len(self._answer.nodes) >= _MOST_NODES:
            self._answer.truncated = True
            return False
        node = self._source.node(name)
        self._known[name] = node is not None
        if node is not None:
            node.distance = distance
            self._answer.nodes.append(node)
        return node is not None

    def _link(self, name: str, other: str, relation: str, sign: int) -> None:
        pair = (other, name) if sign < 0 else (name, other)
        if pair not in self._edges:
            self._edges.add(pair)
            self._answer.edges.add(from_node=pair[0], to_node=pair[1], relation=relation)


class Source:
    """Nodes and their neighbours, from the rows of a project."""

    def __init__(self, session: Session, project: str) -> None:
        self._session, self._project = session, project
        self._prefix = f"projects/{project}"

    def steps(self, name: str, sign: int) -> Iterator[Step]:
        """Yields the neighbours of a node, upstream for a negative sign."""
        kind = kind_of(name)
        found: Callable[[str], Iterator[Step]] | None
        found = getattr(self, f"_{kind}_{'up' if sign < 0 else 'down'}", None)
        return found(name) if found is not None else iter(())

    def node(self, name: str) -> lineage_pb2.LineageNode | None:
        """Returns a node, or None when there is no such thing. What was deleted since is told by its name
        only."""
        kind = kind_of(name)
        node = lineage_pb2.LineageNode(name=name, kind=kind or "", label=_label(name))
        fill: Callable[[lineage_pb2.LineageNode], bool] | None = getattr(self, f"_fill_{kind}", None)
        return node if fill is None or fill(node) else None

    # What nodes say.

    def _fill_dataset(self, node: lineage_pb2.LineageNode) -> bool:
        found = self._dataset(node.name)
        if found is None:
            node.facts["deleted"] = "true"
            return True
        node.digest = found.digest
        node.create_time.CopyFrom(found.create_time)
        node.facts.update({"rows": str(found.num_rows), "form": found.row_format, "source": found.source})
        return True

    def _fill_base_model(self, node: lineage_pb2.LineageNode) -> bool:
        try:
            base = store.base_model(self._session, self._project, node.name.rpartition("/")[2])
        except NotFound:
            node.facts["deleted"] = "true"
            return True
        node.digest = base.digest
        node.create_time.CopyFrom(base.create_time)
        node.facts.update({"architecture": base.architecture, "parameters": str(base.num_parameters)})
        return True

    def _fill_job(self, node: lineage_pb2.LineageNode) -> bool:
        record = records.find(self._session, self._project, node.name.rpartition("/")[2])
        if record is not None:
            node.facts.update({"spec": record.spec, "creator": record.creator})
            node.facts.update(
                {"dataset_digest": record.dataset_digest, "base_model_digest": record.base_model_digest}
            )
            node.create_time.FromDatetime(record.create_time)
        return record is not None or self._has_traces(node.name)

    def _has_traces(self, job: str) -> bool:
        """A job older than the records is known by what it made."""
        return next(self._job_down(job), None) is not None

    def _fill_checkpoint(self, node: lineage_pb2.LineageNode) -> bool:
        for kept in self._checkpoints(node.name.split("/")[3]):
            if kept.name == node.name:
                node.digest, node.label = kept.digest, f"step {kept.step}"
                node.create_time.CopyFrom(kept.create_time)
                node.facts.update({"step": str(kept.step), "expired": str(kept.expired).lower()})
                return True
        return False

    def _fill_model(self, node: lineage_pb2.LineageNode) -> bool:
        try:
            version = self._version(node.name)
        except NotFound:
            return False
        node.digest = version.digest
        node.create_time.CopyFrom(version.create_time)
        node.facts["stage"] = transitions.word(version.stage)
        node.facts.update({name: f"{value:.6g}" for name, value in sorted(version.metrics.items())[:8]})
        return True

    def _fill_evaluation(self, node: lineage_pb2.LineageNode) -> bool:
        of = EVALUATIONS.c
        query = select(EVALUATIONS).where(of.project == self._project, of.id == node.name.rpartition("/")[2])
        row = self._session.execute(query).one_or_none()
        if row is None:
            return False
        node.digest = row.digest
        node.create_time.FromDatetime(row.create_time)
        scores = EVALUATION_SCORES.c
        values = select(scores.metric, scores.value).where(
            scores.project == self._project, scores.evaluation == row.id, scores.target_index == 0
        )
        node.facts.update({score.metric: f"{score.value:.6g}" for score in self._session.execute(values)})
        return True

    def _fill_stage_change(self, node: lineage_pb2.LineageNode) -> bool:
        parts, of = node.name.split("/"), STAGE_CHANGES.c
        query = select(of.body).where(
            of.project == self._project, of.model_id == parts[3], of.sequence == int(parts[5])
        )
        body = self._session.execute(query).scalar_one_or_none()
        if body is None:
            return False
        change = stages_pb2.StageChange.FromString(body)
        node.label = f"{transitions.word(change.from_stage)} → {transitions.word(change.to_stage)}"
        node.create_time.CopyFrom(change.time)
        node.facts.update({"actor": change.actor, "reason": change.reason})
        return True

    # Where they came from and what came from them.

    def _dataset_up(self, name: str) -> Iterator[Step]:
        found = self._dataset(name)
        if found is not None:
            for source in found.derivation.inputs:
                yield source.version, found.derivation.operation or "derived"

    def _dataset_down(self, name: str) -> Iterator[Step]:
        of = JOB_RECORDS.c
        query = select(of.job_id).where(of.project == self._project, of.dataset_version == name)
        for job_id in self._session.execute(query.order_by(of.create_time)).scalars():
            yield f"{self._prefix}/jobs/{job_id}", "trained"
        rows = select(DATASET_VERSIONS.c.body).where(DATASET_VERSIONS.c.project == self._project)
        for body in self._session.execute(rows).scalars():
            other = datasets_pb2.DatasetVersion.FromString(body)
            if any(source.version == name for source in other.derivation.inputs):
                yield other.name, other.derivation.operation or "derived"

    def _prompt_down(self, name: str) -> Iterator[Step]:
        of = JOB_RECORDS.c
        query = select(of.job_id).where(of.project == self._project, of.prompt == name)
        for job_id in self._session.execute(query.order_by(of.create_time)).scalars():
            yield f"{self._prefix}/jobs/{job_id}", "rendered"

    def _base_model_down(self, name: str) -> Iterator[Step]:
        of = JOB_RECORDS.c
        query = select(of.job_id).where(of.project == self._project, of.base_model == name)
        for job_id in self._session.execute(query.order_by(of.create_time)).scalars():
            yield f"{self._prefix}/jobs/{job_id}", "trained"

    def _job_up(self, name: str) -> Iterator[Step]:
        record = records.find(self._session, self._project, name.rpartition("/")[2])
        if record is not None:
            pairs = (
                (record.dataset_version, "trained"),
                (record.prompt, "rendered"),
                (record.base_model, "trained"),
            )
            yield from ((other, relation) for other, relation in pairs if other)
            if record.forked_from:
                yield from self._checkpoint_of(record.forked_from)

    def _checkpoint_of(self, digest: str) -> Iterator[Step]:
        for body in self._session.execute(
            select(CHECKPOINTS.c.body).where(CHECKPOINTS.c.project == self._project)
        ).scalars():
            kept = models_pb2.Checkpoint.FromString(body)
            if kept.digest == digest:
                yield kept.name, "forked"
                return

    def _job_down(self, name: str) -> Iterator[Step]:
        for epoch in sorted({kept.epoch for kept in self._checkpoints(name.rpartition("/")[2])}):
            yield f"{name}/attempts/{epoch}", "attempted"
        of = MODEL_VERSIONS.c
        for body in self._session.execute(select(of.body).where(of.job == name)).scalars():
            yield models_pb2.ModelVersion.FromString(body).name, "registered"
        for row in self._session.execute(
            select(EVALUATIONS.c.id).where(EVALUATIONS.c.project == self._project, EVALUATIONS.c.job == name)
        ):
            yield f"{self._prefix}/evaluations/{row.id}", "evaluated"

    def _attempt_up(self, name: str) -> Iterator[Step]:
        yield name.rpartition("/attempts/")[0], "attempted"

    def _attempt_down(self, name: str) -> Iterator[Step]:
        parts = name.split("/")
        for kept in self._checkpoints(parts[3]):
            if kept.epoch == int(parts[5]):
                yield kept.name, "saved"

    def _checkpoint_up(self, name: str) -> Iterator[Step]:
        job = name.rpartition("/checkpoints/")[0]
        for kept in self._checkpoints(name.split("/")[3]):
            if kept.name == name:
                yield f"{job}/attempts/{kept.epoch}", "saved"

    def _checkpoint_down(self, name: str) -> Iterator[Step]:
        of = JOB_RECORDS.c
        digest = name.rpartition("/")[2]
        query = select(of.job_id).where(of.project == self._project, of.forked_from == digest)
        for job_id in self._session.execute(query).scalars():
            yield f"{self._prefix}/jobs/{job_id}", "forked"

    def _model_up(self, name: str) -> Iterator[Step]:
        version = self._version(name)
        if version.derived_from:
            yield version.derived_from, "converted"
        if version.job:
            yield version.job, "registered"
        else:
            base = version.base_model.rpartition("/")[2]
            yield f"{self._prefix}/baseModels/{base}", "made from"
            if version.dataset_version:
                yield version.dataset_version, "made from"

    def _model_down(self, name: str) -> Iterator[Step]:
        scores = EVALUATION_SCORES.c
        query = select(scores.evaluation).where(scores.project == self._project, scores.target == name)
        for evaluation in sorted(set(self._session.execute(query).scalars())):
            yield f"{self._prefix}/evaluations/{evaluation}", "evaluated"
        parts, of = name.split("/"), STAGE_CHANGES.c
        moved = select(of.sequence).where(
            of.project == self._project, of.model_id == parts[3], of.version == int(parts[5])
        )
        for sequence in self._session.execute(moved.order_by(of.sequence)).scalars():
            yield f"{self._prefix}/models/{parts[3]}/stageChanges/{sequence}", "moved"

    def _evaluation_up(self, name: str) -> Iterator[Step]:
        scores = EVALUATION_SCORES.c
        query = select(scores.target, scores.dataset_version).where(
            scores.project == self._project, scores.evaluation == name.rpartition("/")[2]
        )
        for row in set(self._session.execute(query)):
            yield row.target, "evaluated"
            yield row.dataset_version, "evaluated on"

    def _stage_change_up(self, name: str) -> Iterator[Step]:
        parts, of = name.split("/"), STAGE_CHANGES.c
        query = select(of.version).where(
            of.project == self._project, of.model_id == parts[3], of.sequence == int(parts[5])
        )
        for number in self._session.execute(query).scalars():
            yield f"{self._prefix}/models/{parts[3]}/versions/{number}", "moved"

    # Rows.

    def _dataset(self, name: str) -> datasets_pb2.DatasetVersion | None:
        parts, of = name.split("/"), DATASET_VERSIONS.c
        query = select(of.body).where(
            of.project == self._project, of.dataset_id == parts[3], of.version == int(parts[5])
        )
        body = self._session.execute(query).scalar_one_or_none()
        return datasets_pb2.DatasetVersion.FromString(body) if body is not None else None

    def _version(self, name: str) -> models_pb2.ModelVersion:
        parts = name.split("/")
        return targets.version_of(self._session, self._project, parts[3], parts[5])

    def _checkpoints(self, job_id: str) -> list[models_pb2.Checkpoint]:
        of = CHECKPOINTS.c
        query = select(of.body).where(of.project == self._project, of.job_id == job_id)
        bodies: Any = self._session.execute(query.order_by(of.epoch, of.step)).scalars()
        return [models_pb2.Checkpoint.FromString(body) for body in bodies]


def _label(name: str) -> str:
    parts = name.split("/")
    return f"{parts[3]}@{parts[5]}" if len(parts) == 6 and parts[4] == "versions" else parts[-1][:26]
