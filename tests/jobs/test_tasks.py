"""Jobs that evaluate or export: accepted, pinned, run and ended like those that train."""

from typing import Any

import pytest

from tests.jobs.hands import Jobs
from tests.support.service import until
from tunesmith.api.jobs.v1 import evaluation_pb2, jobs_pb2, spec_pb2, state_pb2
from tunesmith.api.registry.v1 import events_pb2 as registry_events_pb2
from tunesmith.errors import TunesmithError

VERSION = "projects/default/models/m/versions/1"
PINNED = [evaluation_pb2.PinnedTarget(name=VERSION, digest="e" * 64)]


def evaluation(**fields: Any) -> evaluation_pb2.EvaluationSpec:
    scorers = [evaluation_pb2.Scorer(exact_match=evaluation_pb2.ExactMatchScorer())]
    return evaluation_pb2.EvaluationSpec(**{"targets": [VERSION], "scorers": scorers, **fields})


def judge(**fields: Any) -> list[evaluation_pb2.Scorer]:
    made = evaluation_pb2.JudgeScorer(base_url="https://example.com/v1", model="m", **fields)
    return [evaluation_pb2.Scorer(judge=made)]


async def pinned(jobs: Jobs, job: jobs_pb2.Job, dataset_digest: str) -> None:
    good = registry_events_pb2.JobInputsValidated(
        job=job.name,
        base_model="projects/default/baseModels/tiny",
        base_model_digest="a" * 64,
        dataset_version="projects/default/datasets/sums/versions/2",
        dataset_digest=dataset_digest,
        targets=PINNED,
    )
    await jobs.answer(job, "inputs_validated", job_inputs_validated=good)


async def output(jobs: Jobs, job: jobs_pb2.Job) -> Any:
    """Lets the job's attempt complete; returns what is said of its output."""
    await jobs.command("assign")
    for state in ("LAUNCHING", "READY", "RUNNING"):
        await jobs.report(job, state=f"ATTEMPT_STATE_{state}")
    await jobs.report(job, state="ATTEMPT_STATE_COMPLETED", output_digest="c" * 64)
    await jobs.reaches(job.name, state_pb2.JOB_STATE_FINALIZING)

    async def said() -> Any:
        found = await jobs.events(job, "output_ready")
        return found[0] if found else None

    return await until(said, "the output is announced")


async def test_an_evaluation_goes_from_submit_to_its_scores(jobs: Jobs) -> None:
    await jobs.join()
    job = await jobs.submit(base_model="", evaluation=evaluation())
    assert job.spec.evaluation.batch_size == 8, "defaults are filled in"
    assert job.spec.evaluation.generation.max_new_tokens == 128
    await pinned(jobs, job, "b" * 64)
    assign = (await jobs.command("assign")).assign
    assert list(assign.targets) == PINNED
    assert assign.spec.base_model == "tiny", "that of its targets"
    assert assign.dataset_digest == "b" * 64
    ready = await output(jobs, job)
    assert list(ready.targets) == PINNED
    assert ready.evaluation == job.spec.evaluation
    done = registry_events_pb2.EvaluationCompleted(job=job.name)
    done.evaluation.name = f"projects/default/evaluations/{job.job_id}"
    await jobs.answer(job, "evaluation_completed", evaluation_completed=done)
    ended = await jobs.reaches(job.name, state_pb2.JOB_STATE_SUCCEEDED)
    assert ended.evaluation == done.evaluation.name
    assert list(ended.targets) == PINNED
    changes = await jobs.events(job, "state_changed")
    assert changes[-1].evaluation == done.evaluation.name


async def test_an_export_needs_no_data_and_ends_with_a_version(jobs: Jobs) -> None:
    await jobs.join()
    export = evaluation_pb2.ExportSpec(target=VERSION, format=evaluation_pb2.MODEL_FORMAT_MERGED)
    job = await jobs.submit(
        base_model="", dataset="", export=export, output=spec_pb2.OutputSpec(model="merged")
    )
    await pinned(jobs, job, "")
    assert (await jobs.command("assign")).assign.dataset_digest == ""
    ready = await output(jobs, job)
    assert ready.model.endswith("merged")
    assert not ready.HasField("evaluation")
    assert not ready.final_metrics, "nothing was trained"
    assert ready.dataset_version.endswith("sums/versions/2"), "what the model was trained on"
    registered = registry_events_pb2.ModelVersionRegistered(job=job.name)
    registered.version.name = "projects/default/models/merged/versions/1"
    await jobs.answer(job, "version_registered", model_version_registered=registered)
    await jobs.reaches(job.name, state_pb2.JOB_STATE_SUCCEEDED)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"dataset": ""}, "spec.dataset"),
        ({"training": spec_pb2.TrainingSpec(max_steps=3)}, "spec.training"),
        ({"adapter": spec_pb2.AdapterSpec(full=spec_pb2.FullSpec())}, "spec.adapter"),
        ({"sample_prompts": ["hello"]}, "spec.sample_prompts"),
        ({"output": spec_pb2.OutputSpec(model="m")}, "spec.output.model"),
        ({"resources": spec_pb2.ResourceSpec(processes_per_node=2)}, "spec.resources"),
        ({"export": evaluation_pb2.ExportSpec(target=VERSION)}, "spec.export"),
        ({"evaluation": evaluation(targets=[])}, "spec.evaluation.targets"),
        ({"evaluation": evaluation(targets=["support@3"])}, "spec.evaluation.targets[0]"),
        ({"evaluation": evaluation(targets=[VERSION, VERSION])}, "spec.evaluation.targets"),
        ({"evaluation": evaluation(scorers=[])}, "spec.evaluation.scorers"),
        ({"evaluation": evaluation(scorers=[evaluation_pb2.Scorer(name="x")])}, "spec.evaluation.scorers[0]"),
        (
            {"evaluation": evaluation(scorers=[evaluation().scorers[0]] * 2)},
            "spec.evaluation.scorers[1].name",
        ),
        (
            {"evaluation": evaluation(scorers=[{"regex": {"pattern": "(("}}])},
            "spec.evaluation.scorers[0].regex.pattern",
        ),
        (
            {"evaluation": evaluation(scorers=judge(min_score=5, max_score=5))},
            "spec.evaluation.scorers[0].judge.max_score",
        ),
        (
            {"evaluation": evaluation(scorers=judge(timeout={"seconds": 9999}))},
            "spec.evaluation.scorers[0].judge.timeout",
        ),
        (
            {"evaluation": evaluation(generation={"temperature": -1})},
            "spec.evaluation.generation.temperature",
        ),
    ],
)
async def test_what_an_evaluation_cannot_mean_is_refused_by_name(
    jobs: Jobs, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(TunesmithError) as caught:
        await jobs.submit(**{"evaluation": evaluation(), **fields})
    found = [caught.value.field, *(violation.path for violation in caught.value.violations)]
    assert field in found
    assert caught.value.reason in ("SPEC_INCONSISTENT", "FIELD_INVALID")


async def test_what_an_export_would_ignore_is_refused(jobs: Jobs) -> None:
    export = evaluation_pb2.ExportSpec(target=VERSION)
    for fields in ({"dataset": "sums"}, {"dataset": "", "training": spec_pb2.TrainingSpec(seed=4)}):
        with pytest.raises(TunesmithError) as caught:
            await jobs.submit(export=export, **fields)
        assert caught.value.reason == "SPEC_INCONSISTENT"


async def test_a_completed_spec_can_be_submitted_again(jobs: Jobs) -> None:
    """As `tunesmith show --spec` prints it, with every default filled in."""
    first = await jobs.submit(evaluation=evaluation())
    request = jobs_pb2.CreateJobRequest(parent="projects/default", spec=first.spec)
    again: Any = await jobs.call(jobs.jobs.CreateJob, request)
    assert again.job.spec == first.spec
    assert again.job.spec_digest == first.spec_digest
