"""What a job would take, before it is submitted: joined from what jobs, registry and the job file know."""

import asyncio
import json
import math
from collections.abc import Awaitable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from tunesmith import jobfile, validation
from tunesmith.api.gateway.v1 import quotes_pb2, quotes_pb2_grpc
from tunesmith.api.jobs.v1 import jobs_pb2, jobs_pb2_grpc, queue_pb2, spec_pb2
from tunesmith.api.nodes.v1 import nodes_pb2, nodes_pb2_grpc
from tunesmith.api.registry.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    prompts_pb2,
    prompts_pb2_grpc,
)
from tunesmith.errors import InvalidArgument, NotFound, Violation
from tunesmith.jobfields import plain
from tunesmith.jobfile import Examined
from tunesmith.status import from_rpc_error
from tunesmith_gateway.proxy import Backends
from tunesmith_kit import names

A = TypeVar("A", bound=Message)
_LONGEST_SECONDS = 3e8  # ten years: what a Duration and a reader can take


class QuoteService(quotes_pb2_grpc.QuoteServiceServicer):
    """QuoteService of the contract."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        registry, jobs = backends.channel("registry"), backends.channel("jobs")
        self._jobs = jobs_pb2_grpc.JobServiceStub(jobs)
        self._nodes = nodes_pb2_grpc.NodeServiceStub(jobs)
        self._models = models_pb2_grpc.ModelServiceStub(registry)
        self._datasets = datasets_pb2_grpc.DatasetServiceStub(registry)
        self._prompts = prompts_pb2_grpc.PromptServiceStub(registry)

    async def QuoteJob(
        self, request: quotes_pb2.QuoteJobRequest, context: Any
    ) -> quotes_pb2.QuoteJobResponse:
        (project,) = names.parse("projects/*", request.parent, "parent")
        # A large file takes PyYAML a second; others are served meanwhile.
        asked = await asyncio.to_thread(_asked, request)
        answer = quotes_pb2.QuoteJobResponse(content=_text(asked.content))
        checked = await self._check(request.parent, asked)
        spec = checked.job.spec if checked is not None else asked.spec
        there = await self._inputs(project, spec, asked)
        _add_mistakes(answer, asked)
        if checked is None:
            return answer
        if not asked.mistakes:
            answer.spec.CopyFrom(spec)
        forecast, base, data = checked.forecast, there.get("base_model"), there.get("dataset")
        _add_placement(answer, forecast)
        if base is not None and base.HasField("memory"):
            _add_memory(answer, spec, base.memory)
        if data is not None and _trains(spec):
            _add_time(answer, spec.training, _version(data), forecast)
        fleet = await self._call(self._nodes.ListNodes, nodes_pb2.ListNodesRequest(page_size=1000))
        _add_nodes(answer, spec.resources, forecast, fleet.nodes)
        return answer

    async def _check(self, parent: str, asked: Examined) -> jobs_pb2.CreateJobResponse | None:
        """Has the jobs service check the spec and fill in its defaults; None when it would be refused."""
        if asked.content is None or asked.mistakes:
            return None
        request = jobs_pb2.CreateJobRequest(parent=parent, spec=asked.spec, validate_only=True)
        try:
            found: jobs_pb2.CreateJobResponse = await self._call(self._jobs.CreateJob, request)
        except InvalidArgument as error:
            wrong = error.violations or (Violation(error.field, error.value, error.message, error.remedy),)
            asked.mistakes += map(_own, wrong)
            return None
        return found

    async def _inputs(self, project: str, spec: spec_pb2.JobSpec, asked: Examined) -> dict[str, Any]:
        """Looks up what the spec refers to, by field; what is not there is a mistake of the file."""
        wrong = {mistake.path for mistake in asked.mistakes}
        calls: dict[str, Awaitable[Any]] = {}
        if spec.base_model and "base_model" not in wrong:
            request = models_pb2.GetBaseModelRequest(
                name=f"projects/{project}/baseModels/{spec.base_model}",
                batch_size=min(spec.training.micro_batch_size, 4096),
                max_length=min(spec.training.max_length, 1 << 20),
            )
            calls["base_model"] = self._call(self._models.GetBaseModel, request)
        if spec.dataset and "dataset" not in wrong:
            calls["dataset"] = self._dataset(f"projects/{project}/datasets/", spec.dataset)
        if spec.prompt_template and "prompt_template" not in wrong:
            calls["prompt_template"] = self._prompt(f"projects/{project}/prompts/", spec.prompt_template)
        found = dict(zip(calls, await asyncio.gather(*map(_or_missing, calls.values())), strict=True))
        for field, missing in found.items():
            if isinstance(missing, NotFound):
                value = getattr(spec, field)
                asked.mistakes.append(Violation(field, value, missing.message, _REFERENCES[field]))
        return {field: value for field, value in found.items() if not isinstance(value, NotFound)}

    async def _dataset(self, folder: str, named: str) -> Any:
        name, _, version = named.partition("@")
        if version:
            request = datasets_pb2.GetDatasetVersionRequest(name=f"{folder}{name}/versions/{int(version)}")
            return await self._call(self._datasets.GetDatasetVersion, request)
        return await self._call(self._datasets.GetDataset, datasets_pb2.GetDatasetRequest(name=folder + name))

    async def _prompt(self, folder: str, named: str) -> Any:
        name, _, version = named.partition("@")
        if version:
            request = prompts_pb2.GetPromptTemplateVersionRequest(
                name=f"{folder}{name}/versions/{int(version)}"
            )
            return await self._call(self._prompts.GetPromptTemplateVersion, request)
        return await self._call(
            self._prompts.GetPromptTemplate, prompts_pb2.GetPromptTemplateRequest(name=folder + name)
        )

    async def _call(self, call: Any, request: Message) -> Any:
        try:
            return await call(request, metadata=self._backends.metadata())
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None


# What may be missing without making the rest of a quote worthless, and what to do then.
_REFERENCES = {
    "base_model": "`tunesmith models bases` lists the registered ones",
    "dataset": "`tunesmith datasets list` lists them",
    "prompt_template": "`tunesmith prompts list` lists them",
}


async def _or_missing(call: Awaitable[A]) -> A | NotFound:
    try:
        return await call
    except NotFound as error:
        return error


def _asked(request: quotes_pb2.QuoteJobRequest) -> Examined:
    if request.HasField("spec") == bool(request.file):
        both = request.HasField("spec")
        raise InvalidArgument(
            "FIELD_INVALID",
            "spec and file exclude each other" if both else "neither spec nor file is given",
            field="spec",
            remedy="give one of them",
        )
    if request.file:
        return jobfile.examine(request.file)
    return Examined(plain(request.spec), request.spec, validation.violations(request.spec))


def _text(content: Any) -> str:
    # What is no JSON, such as NaN or a number as a key, is told as a text: it is wrong in a job file anyway.
    return "" if content is None else json.dumps(_jsonable(content), separators=(",", ":"))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _own(wrong: Violation) -> Violation:
    """A mistake as the jobs service tells it, with the path that the file has."""
    problem = wrong.problem.removeprefix(f"{wrong.path} ")
    return Violation(wrong.path.removeprefix("spec."), wrong.value, problem, wrong.remedy)


def _add_mistakes(answer: quotes_pb2.QuoteJobResponse, asked: Examined) -> None:
    for wrong in sorted(asked.mistakes, key=lambda mistake: asked.lines.get(mistake.path) or 10**9):
        answer.mistakes.add(
            field=wrong.path,
            value=wrong.value,
            problem=wrong.problem,
            remedy=wrong.remedy,
            line=asked.lines.get(wrong.path, 0),
        )


def _add_placement(answer: quotes_pb2.QuoteJobResponse, forecast: queue_pb2.JobForecast) -> None:
    placement = forecast.placement
    answer.rule, answer.message = placement.rule, placement.message
    answer.queue_position = placement.queue_position
    if placement.HasField("change"):
        answer.change.CopyFrom(placement.change)


def _trains(spec: spec_pb2.JobSpec) -> bool:
    return not spec.HasField("evaluation") and not spec.HasField("export")


def _add_memory(
    answer: quotes_pb2.QuoteJobResponse, spec: spec_pb2.JobSpec, needs: models_pb2.MemoryNeeds
) -> None:
    need = needs.full_bytes if spec.adapter.HasField("full") else needs.lora_bytes
    answer.memory.process_bytes = need if _trains(spec) else needs.load_bytes
    answer.memory.weights_bytes = needs.load_bytes


def _version(data: Any) -> datasets_pb2.DatasetVersion:
    found: datasets_pb2.DatasetVersion = data.version if hasattr(data, "version") else data.dataset.latest
    return found


def _add_time(
    answer: quotes_pb2.QuoteJobResponse,
    training: spec_pb2.TrainingSpec,
    version: datasets_pb2.DatasetVersion,
    forecast: queue_pb2.JobForecast,
) -> None:
    time = answer.time
    time.num_rows = version.num_rows - int(version.num_rows * training.eval_fraction)
    per_step = training.micro_batch_size * training.gradient_accumulation_steps * training.logical_shards
    time.rows_per_step, time.num_jobs = per_step, forecast.num_jobs
    if training.max_steps:
        time.num_steps = training.max_steps
    elif not training.packing and per_step:
        time.num_steps = math.ceil(training.num_epochs * math.ceil(time.num_rows / per_step))
    if forecast.num_jobs and time.num_steps:
        seconds = forecast.seconds_per_row * time.num_steps * per_step
        time.training.FromTimedelta(timedelta(seconds=min(seconds, _LONGEST_SECONDS)))


def _add_nodes(
    answer: quotes_pb2.QuoteJobResponse,
    resources: spec_pb2.ResourceSpec,
    forecast: queue_pb2.JobForecast,
    fleet: Iterable[nodes_pb2.Node],
) -> None:
    capacities = {node.name: node.capacity for node in fleet}
    for verdict in forecast.placement.nodes:
        node = answer.nodes.add(node=verdict.node, rule=verdict.rule, message=verdict.message)
        capacity = capacities.get(verdict.node)
        if capacity is None:
            continue
        if resources.gpus_per_node:
            node.process_bytes = min((gpu.memory_bytes for gpu in capacity.gpus), default=0)
        else:
            node.process_bytes = capacity.memory_bytes // max(resources.processes_per_node, 1)
        if answer.HasField("memory"):
            node.enough_memory = node.process_bytes >= answer.memory.process_bytes
