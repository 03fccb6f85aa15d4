"""Evaluations: what targets answered, how they were judged, side by side; and exports of models."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from tunesmith import names
from tunesmith.api.jobs.v1 import evaluation_pb2, jobs_pb2, spec_pb2
from tunesmith.api.registry.v1 import evaluations_pb2
from tunesmith.connection import Connection, new_request_id
from tunesmith.errors import InvalidArgument
from tunesmith.faces import Face, Handle, both, stream
from tunesmith.job import Job
from tunesmith.targets import resolve

KINDS: Sequence[str] = [
    field.name for field in evaluation_pb2.Scorer.DESCRIPTOR.oneofs_by_name["kind"].fields
]
_ORDERS = evaluations_pb2.DESCRIPTOR.enum_types_by_name["SampleOrder"]
_FORMATS = evaluation_pb2.DESCRIPTOR.enum_types_by_name["ModelFormat"]
_WEIGHTS = evaluation_pb2.DESCRIPTOR.enum_types_by_name["WeightFormat"]
Scorers = Iterable[str | Mapping[str, Any] | evaluation_pb2.Scorer]


class Evaluations(Handle[Face]):
    """The evaluations of the project. A target is written `BASE`, `MODEL@VERSION` (a number, alias or stage),
    `job:JOB`, `job:JOB@STEP`, or as a resource name."""

    _core: Connection

    @both
    async def submit(
        self,
        targets: str | Sequence[str],
        dataset: str,
        scorers: Scorers,
        *,
        experiment: str = "evaluation",
        prompt_template: str = "",
        generation: Mapping[str, Any] | None = None,
        spec: spec_pb2.JobSpec | None = None,
        settings: Mapping[str, Any] | None = None,
        request_id: str | None = None,
    ) -> Job[Face]:
        """Submits an evaluation and returns its job; when it succeeded, `get(job.evaluation)` has the scores.

        `scorers` are kinds such as `exact_match`, mappings such as `{"regex": {"pattern": "^yes"}}`, or
        Scorer messages; `generation` has fields of GenerationSpec, `settings` further ones of EvaluationSpec
        such as `max_rows`. `spec` says what else the job needs, such as resources.

        Raises InvalidArgument, or NotFound for an unknown checkpoint.
        """
        wanted = spec_pb2.JobSpec()
        if spec is not None:
            wanted.CopyFrom(spec)
        wanted.experiment = wanted.experiment or experiment
        wanted.dataset = dataset
        wanted.prompt_template = prompt_template or wanted.prompt_template
        listed = [targets] if isinstance(targets, str) else list(targets)
        wanted.evaluation.targets.extend([await resolve(self._core, target) for target in listed])
        wanted.evaluation.scorers.extend([scorer_of(each) for each in scorers])
        _set(wanted.evaluation.generation, generation or {}, "generation")
        _set(wanted.evaluation, settings or {}, "evaluation")
        return await self._submit(wanted, request_id)

    @both
    async def export(
        self,
        target: str,
        model: str,
        *,
        format: str = "",
        weights: str = "",
        experiment: str = "export",
        request_id: str | None = None,
    ) -> Job[Face]:
        """Submits an export of a version or checkpoint as a new version of `model`, and returns its job.

        `format` is `adapter` or `merged`; empty: as it was trained. `weights` of a merged model are `float32`
        or `bfloat16`.
        """
        wanted = spec_pb2.JobSpec(experiment=experiment)
        wanted.output.model = model
        wanted.export.target = await resolve(self._core, target)
        if format:
            number = names.number("format", _FORMATS, format)
            wanted.export.format = evaluation_pb2.ModelFormat.ValueType(number)
        if weights:
            number = names.number("weights", _WEIGHTS, weights)
            wanted.export.weights = evaluation_pb2.WeightFormat.ValueType(number)
        return await self._submit(wanted, request_id)

    @both
    async def get(self, name: str) -> evaluations_pb2.Evaluation:
        """Returns one evaluation by its id, its job's readable name, or its resource name."""
        return await self._get(name)

    @stream
    async def list(
        self, *, target: str = "", dataset: str = "", limit: int | None = None
    ) -> AsyncGenerator[evaluations_pb2.Evaluation, None]:
        """Yields evaluations, newest first: with a target, on a dataset (`id`) or its version (`id@3`)."""
        request = evaluations_pb2.ListEvaluationsRequest(
            parent=self._core.parent,
            page_size=min(limit or 200, 200),
            target=await resolve(self._core, target) if target else "",
            dataset=self._dataset(dataset),
        )
        number = 0
        async for page in self._core.pages(self._core.evaluations.ListEvaluations, request):
            for evaluation in page.evaluations:
                if number == limit:
                    return
                number += 1
                yield evaluation

    @stream
    async def samples(
        self,
        name: str,
        *,
        metric: str = "",
        at_most: float | None = None,
        at_least: float | None = None,
        disagree: bool = False,
        target_index: int | None = None,
        order: str = "",
        limit: int | None = None,
    ) -> AsyncGenerator[evaluations_pb2.EvaluationSample, None]:
        """Yields rows with every target's answer: those where a metric lies within bounds, or differs between
        targets. `order` is `ascending`, `descending` or `difference`; empty: as in the dataset."""
        number = names.number("order", _ORDERS, order) if order else 0
        request = evaluations_pb2.ListEvaluationSamplesRequest(
            parent=await self._name(name),
            page_size=min(limit or 200, 200),
            metric=metric,
            at_most=at_most,
            at_least=at_least,
            disagree=disagree,
            target_index=target_index,
            order=evaluations_pb2.SampleOrder.ValueType(number),
        )
        given = 0
        async for page in self._core.pages(self._core.evaluations.ListEvaluationSamples, request):
            for sample in page.samples:
                if given == limit:
                    return
                given += 1
                yield sample

    @both
    async def compare(self, *targets: str) -> evaluations_pb2.CompareEvaluationsResponse:
        """Compares targets of evaluations row by row with the first: each is written `EVALUATION`, or
        `EVALUATION#1` for its second target. One evaluation alone is compared within itself."""
        wanted = []
        for target in targets:
            name, _, index = target.partition("#")
            if index and not index.isdecimal():
                raise InvalidArgument(
                    "FIELD_INVALID", "this names no target of an evaluation", field="targets", value=target,
                    remedy="write EVALUATION#0 for its first target, EVALUATION#1 for its second",
                )  # fmt: skip
            evaluation = await self._get(name)
            places = [int(index)] if index else range(len(evaluation.targets)) if len(targets) == 1 else [0]
            wanted += [
                evaluations_pb2.EvaluatedTarget(evaluation=evaluation.name, target_index=place)
                for place in places
            ]
        request = evaluations_pb2.CompareEvaluationsRequest(parent=self._core.parent, targets=wanted)
        return await self._core.call(self._core.evaluations.CompareEvaluations, request)

    async def _submit(self, spec: spec_pb2.JobSpec, request_id: str | None) -> Job[Face]:
        request = jobs_pb2.CreateJobRequest(
            parent=self._core.parent, spec=spec, request_id=request_id or new_request_id()
        )
        return Job(self._core, (await self._core.call(self._core.jobs.CreateJob, request)).job)

    async def _get(self, name: str) -> evaluations_pb2.Evaluation:
        request = evaluations_pb2.GetEvaluationRequest(name=await self._name(name))
        return (await self._core.call(self._core.evaluations.GetEvaluation, request)).evaluation

    async def _name(self, name: str) -> str:
        """The resource name; an evaluation is also known by the readable name of its job."""
        if "/" in name or names.is_id(name):
            return names.resource(self._core.project, "evaluations", name)
        job = jobs_pb2.GetJobRequest(name=names.resource(self._core.project, "jobs", name))
        job_id = (await self._core.call(self._core.jobs.GetJob, job)).job.job_id
        return names.resource(self._core.project, "evaluations", job_id)

    def _dataset(self, name: str) -> str:
        if not name or "/" in name:
            return name
        dataset, _, version = name.partition("@")
        return names.resource(self._core.project, "datasets", dataset) + (
            f"/versions/{version}" if version else ""
        )


def scorer_of(each: str | Mapping[str, Any] | evaluation_pb2.Scorer) -> evaluation_pb2.Scorer:
    """Returns a scorer of a kind's name, of a mapping such as `{"regex": {"pattern": "^yes"}}`, or as it is.

    A text may carry the kind's main value: `regex=^yes`, `expression=answer | length < 9`.
    """
    if isinstance(each, evaluation_pb2.Scorer):
        return each
    scorer = evaluation_pb2.Scorer()
    if not isinstance(each, str):
        _set(scorer, each, "scorers")
        return scorer
    kind, equals, value = each.partition("=")
    kind = kind.strip().replace("-", "_")
    if kind not in KINDS:
        raise _no_scorer(each, f"use one of {', '.join(KINDS)}")
    part = getattr(scorer, kind)
    part.SetInParent()
    if not equals:
        return scorer
    if kind == "regex":
        part.pattern = value
    elif kind == "expression":
        part.expression = value
    elif kind == "multiple_choice":
        part.choices.extend(choice.strip() for choice in value.split("|"))
    else:
        raise _no_scorer(each, f"{kind} takes no value here; a job file can say more")
    return scorer


def _no_scorer(value: str, remedy: str) -> InvalidArgument:
    return InvalidArgument("FIELD_INVALID", "this is no scorer", field="scorers", value=value, remedy=remedy)


def _set(message: Any, values: Mapping[str, Any], what: str) -> None:
    """Sets the fields of a message from plain values, as a job file's."""
    from tunesmith.jobfields import Reading

    reading = Reading(message.DESCRIPTOR)
    reading.fill(message, values)
    if reading.mistakes:
        only = reading.mistakes[0]
        raise InvalidArgument(
            "FIELD_INVALID",
            f"{what}: {only.path} {only.problem}",
            field=only.path,
            value=only.value,
            remedy=only.remedy,
            violations=reading.mistakes,
        )
