"""Evaluations in the registry: targets pinned, outputs judged once, rows browsed, targets compared."""

import json
import math
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import sacrebleu
from sacrebleu.metrics.bleu import BLEU

from tests.registry import support
from tests.registry.support import JOB, JOB_ID, PROJECT, Registry, running_registry
from tests.support.wait import until_async
from tunesmith.api.jobs.v1 import evaluation_pb2, events_pb2, spec_pb2, state_pb2
from tunesmith.api.registry.v1 import evaluations_pb2 as pb
from tunesmith.api.registry.v1 import models_pb2
from tunesmith.errors import TunesmithError
from tunesmith_kit.ids import new_ulid

BASE = f"{PROJECT}/baseModels/tiny"
ROWS = support.jsonl(
    *(
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]}
        for n in range(40)
    )
)
EXACT = {"name": "exact_match", "aggregate": "mean", "higher_is_better": True}
LOSS = {"name": "perplexity", "aggregate": "perplexity", "higher_is_better": False}
BLEU_ = {"name": "bleu", "aggregate": "bleu", "higher_is_better": True}


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with running_registry(tmp_path) as registry:
        await registry.import_base_model("tiny", support.base_model_files())
        await registry.import_dataset("questions", ROWS)
        yield registry


def answer(text: str = "a", stats: dict[str, list[float]] | None = None, **scores: float) -> dict[str, Any]:
    return {"text": text, "num_tokens": 1, "scores": scores, "stats": stats or {}, "notes": {}}


def sample(row: int, *answers: dict[str, Any]) -> dict[str, Any]:
    return {
        "row": row,
        "prompt": [{"role": "user", "content": f"q{row}"}],
        "reference": "a",
        "answers": list(answers),
    }


async def finished(
    registry: Registry,
    samples: list[dict[str, Any]],
    metrics: list[dict[str, Any]],
    targets: list[str],
    job: str = JOB,
    event_id: str = "",
    dataset_digest: str = "d" * 64,
) -> None:
    """Says what the jobs service says when an evaluation has ended."""
    files = {
        "samples.jsonl": support.jsonl(*samples),
        "metrics.json": json.dumps({"metrics": metrics}).encode(),
    }
    properties = {"dataset_digest": dataset_digest, "base_model_digest": "b" * 64}
    await registry.job_says(
        "output_ready",
        event_id,
        job=job,
        manifest_digest=await registry.store_artifact("evaluation", files, properties),
        base_model=BASE,
        dataset_version=f"{PROJECT}/datasets/questions/versions/1",
        targets=[evaluation_pb2.PinnedTarget(name=name) for name in targets],
        evaluation=evaluation_pb2.EvaluationSpec(targets=targets),
    )


def spec(*targets: str, **fields: Any) -> spec_pb2.JobSpec:
    return spec_pb2.JobSpec(
        dataset="questions", evaluation=evaluation_pb2.EvaluationSpec(targets=targets), **fields
    )


async def version_of(registry: Registry, model: str, job: str) -> str:
    """Registers a version as a training job's output and returns its resource name."""
    count = sum(event.WhichOneof("event") == "model_version_registered" for event in registry.said)
    digest = await registry.store_artifact(
        "model", {"adapter_config.json": b"{}", "adapter_model.safetensors": support.safetensors(a=(2, 2))}
    )
    await registry.job_says(
        "output_ready", job=job, manifest_digest=digest, model=f"{PROJECT}/models/{model}", base_model=BASE
    )
    event = await registry.answer("model_version_registered", count + 1)
    return event.model_version_registered.version.name


async def test_targets_are_pinned_by_digest_and_the_base_model_follows(registry: Registry) -> None:
    version = await version_of(registry, "support", f"{PROJECT}/jobs/{new_ulid()}")
    created = events_pb2.JobCreated(spec=spec(BASE, f"{PROJECT}/models/support/versions/latest"))
    await registry.job_says("created", spec=created.spec)
    good = (await registry.answer("job_inputs_validated")).job_inputs_validated
    assert [target.name for target in good.targets] == [BASE, version]
    assert [len(target.digest) for target in good.targets] == [0, 64]
    assert good.base_model == BASE
    assert good.num_rows == 40


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        ([f"{PROJECT}/models/none/versions/1"], "MODEL_NOT_FOUND"),
        (["projects/other/baseModels/tiny"], "NAME_INVALID"),
        ([f"{PROJECT}/jobs/{JOB_ID}/checkpoints/{'0' * 64}"], "CHECKPOINT_NOT_FOUND"),
        ([BASE, f"{PROJECT}/baseModels/other"], "TARGETS_DIFFER"),
    ],
)
async def test_targets_that_cannot_be_used_are_named(
    registry: Registry, targets: list[str], reason: str
) -> None:
    other = {
        **support.base_model_files(),
        "model.safetensors": support.safetensors(embed=(4, 8), head=(8, 5)),
    }
    await registry.import_base_model("other", other)
    await registry.job_says("created", spec=spec(*targets))
    (error,) = (await registry.answer("job_inputs_rejected")).job_inputs_rejected.errors
    assert error.reason == reason
    assert error.field == f"spec.evaluation.targets[{len(targets) - 1}]"
    assert error.remedy


async def test_a_damaged_target_is_refused_before_a_node_is_taken(registry: Registry) -> None:
    version = await version_of(registry, "support", f"{PROJECT}/jobs/{new_ulid()}")
    weights = support.sha256(support.safetensors(a=(2, 2)))
    (path,) = registry.folder.rglob(weights)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    await registry.job_says("created", spec=spec(version))
    (error,) = (await registry.answer("job_inputs_rejected")).job_inputs_rejected.errors
    assert error.reason == "TARGET_DAMAGED"
    assert weights in error.message


async def test_the_answers_of_an_evaluation_are_no_target(registry: Registry) -> None:
    base = (await registry.import_base_model("tiny", support.base_model_files())).digest
    digest = await registry.store_artifact(
        "checkpoint", {"judged.jsonl": b"{}"}, {"holds": "evaluation", "base_model_digest": base}
    )
    await registry.job_says(
        "checkpoint_committed", checkpoint=state_pb2.CheckpointRef(step=1, epoch=1, digest=digest)
    )

    async def known() -> bool:
        listed = await registry.models.ListCheckpoints(models_pb2.ListCheckpointsRequest(parent=JOB))
        return bool(listed.checkpoints)

    await until_async(known, "the checkpoint is entered")
    await registry.job_says("created", spec=spec(f"{JOB}/checkpoints/{digest}"))
    (error,) = (await registry.answer("job_inputs_rejected")).job_inputs_rejected.errors
    assert error.reason == "TARGET_INVALID"


async def test_scores_have_intervals_and_targets_are_compared(registry: Registry) -> None:
    """The exact numbers: means, e to the mean loss a token, BLEU of the set as sacrebleu has it."""
    generator = random.Random(4)
    words = ["the cat sat on the mat today", "a dog ran over the long road", "trains go to the far city"]
    samples, pairs = [], []
    for row in range(1, 201):
        reference = words[row % 3]
        guess = " ".join(w for w in reference.split() if generator.random() > 0.2) or "none"
        pairs.append((guess, reference))
        found = BLEU(effective_order=True).sentence_score(guess, [reference])
        stats = [
            *map(float, found.counts),
            *map(float, found.totals),
            float(found.sys_len),
            float(found.ref_len),
        ]
        first = answer(
            exact_match=float(row % 2),
            perplexity=math.e,
            bleu=1.0,
            stats={"perplexity": [3.0, 3.0], "bleu": stats},
        )
        tokens = float(1 + row % 4)
        other = answer(
            exact_match=float(row % 2 or row <= 50),
            perplexity=2.0,
            bleu=1.0,
            stats={"perplexity": [tokens * 0.5, tokens], "bleu": stats},
        )
        samples.append(sample(row, first, other))
    targets = [BASE, f"{PROJECT}/models/support/versions/1"]
    await finished(registry, samples, [EXACT, LOSS, BLEU_], targets)
    event = await registry.answer("evaluation_completed")
    made = event.evaluation_completed.evaluation
    assert made.name == f"{PROJECT}/evaluations/{JOB_ID}"
    scores = {(score.target_index, score.metric): score for score in made.scores}
    assert scores[0, "exact_match"].value == 0.5
    assert scores[1, "exact_match"].value == 0.625
    assert scores[0, "perplexity"].value == pytest.approx(math.e)
    assert scores[1, "perplexity"].value == pytest.approx(math.exp(0.5))
    corpus = sacrebleu.corpus_bleu([guess for guess, _ in pairs], [[wanted for _, wanted in pairs]]).score
    assert scores[0, "bleu"].value == pytest.approx(corpus, abs=1e-9)
    exact = scores[0, "exact_match"]
    # The normal approximation of a mean of 200 coin flips: 1.96 x sqrt(0.25 / 200) = 0.069.
    assert exact.ci_low == pytest.approx(0.431, abs=0.015)
    assert exact.ci_high == pytest.approx(0.569, abs=0.015)
    compared = {each.metric: each for each in made.comparisons}
    better = compared["exact_match"]
    assert (better.difference, better.wins, better.ties, better.losses) == (0.125, 25, 175, 0)
    assert 0.075 < better.ci_low < 0.125 < better.ci_high < 0.175
    lower = compared["perplexity"]
    assert lower.difference < 0
    assert (lower.wins, lower.losses) == (200, 0)
    assert not lower.higher_is_better


async def test_bleu_without_a_long_match_is_smoothed_as_sacrebleu_does(registry: Registry) -> None:
    pairs = [
        ("the cat sat far on it", "the cat sat on the mat"),
        ("a dog may run home", "the dog ran home fast"),
    ]
    samples = []
    for row, (guess, reference) in enumerate(pairs, 1):
        found = BLEU(effective_order=True).sentence_score(guess, [reference])
        stats = [
            *map(float, found.counts),
            *map(float, found.totals),
            float(found.sys_len),
            float(found.ref_len),
        ]
        samples.append(sample(row, answer(bleu=found.score, stats={"bleu": stats})))
    await finished(registry, samples, [BLEU_], [BASE])
    (score,) = (await registry.answer("evaluation_completed")).evaluation_completed.evaluation.scores
    corpus = sacrebleu.corpus_bleu([guess for guess, _ in pairs], [[wanted for _, wanted in pairs]])
    assert 0 in corpus.counts
    assert score.value == pytest.approx(corpus.score, abs=1e-9)


async def test_an_output_heard_twice_or_said_again_is_one_evaluation(registry: Registry) -> None:
    event_id = new_ulid()
    for each in (event_id, event_id, ""):
        await finished(registry, [sample(1, answer(exact_match=1.0))], [EXACT], [BASE], event_id=each)
    other = f"{PROJECT}/jobs/{new_ulid()}"
    await finished(registry, [sample(1, answer(exact_match=0.0))], [EXACT], [BASE], job=other)
    await registry.answer("evaluation_completed", 3)
    listed = await registry.evaluations.ListEvaluations(pb.ListEvaluationsRequest(parent=PROJECT))
    assert sorted(each.job for each in listed.evaluations) == sorted([other, JOB])


BROKEN: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = [
    ([], [EXACT]),
    ([{"row": 1}], [EXACT]),
    ([sample(1, answer(exact_match=1.0), answer(exact_match=1.0))], [EXACT]),
    ([sample(2, answer(exact_match=1.0)), sample(1, answer(exact_match=1.0))], [EXACT]),
    ([sample(1, answer(exact_match=1.0))], [{**EXACT, "aggregate": "median"}]),
    ([sample(1, answer(exact_match=1.0))], []),
    ([sample(1, answer())], [EXACT]),
    ([sample(1, answer(perplexity=1.0))], [LOSS]),
    ([sample(1, answer(perplexity=1.0, stats={"perplexity": [1.0]}))], [LOSS]),
    ([sample(1, answer(exact_match=math.inf))], [EXACT]),
    ([sample(-1, answer(exact_match=1.0))], [EXACT]),
]


async def test_an_output_that_is_no_evaluation_fails_its_job(registry: Registry) -> None:
    jobs = [f"{PROJECT}/jobs/{new_ulid()}" for _ in BROKEN]
    for job, (samples, metrics) in zip(jobs, BROKEN, strict=True):
        await finished(registry, samples, metrics, [BASE], job=job)
    await registry.answer("model_version_rejected", len(BROKEN))
    rejected = [e.model_version_rejected for e in registry.said if e.HasField("model_version_rejected")]
    assert {each.job for each in rejected} == set(jobs)
    assert {each.error.reason for each in rejected} == {"ARTIFACT_CORRUPT"}


async def test_rows_are_filtered_ordered_and_paged(registry: Registry) -> None:
    samples = [
        sample(row, answer(f"first {row}", exact_match=row / 10), answer(exact_match=0.3))
        for row in range(1, 11)
    ]
    samples.append(sample(11, answer("none"), answer(exact_match=0.3)))
    await finished(registry, samples, [EXACT], [BASE, f"{PROJECT}/models/m/versions/1"])
    await registry.answer("evaluation_completed")
    name = f"{PROJECT}/evaluations/{JOB_ID}"

    async def rows(**fields: Any) -> list[int]:
        found, token = [], ""
        while True:
            request = pb.ListEvaluationSamplesRequest(parent=name, page_size=3, page_token=token, **fields)
            page = await registry.evaluations.ListEvaluationSamples(request)
            found += [int(each.row) for each in page.samples]
            token = page.next_page_token
            if not token:
                assert page.num_samples == len(found)
                return found

    assert await rows() == list(range(1, 12))
    assert await rows(at_most=0.25, target_index=0) == [1, 2]
    assert await rows(at_least=0.85) == [9, 10]
    assert await rows(disagree=True) == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert (await rows(order=pb.SAMPLE_ORDER_DESCENDING))[:3] == [10, 9, 8]
    assert (await rows(order=pb.SAMPLE_ORDER_ASCENDING))[-1] == 11, "without a value: last"
    assert (await rows(order=pb.SAMPLE_ORDER_DIFFERENCE))[:2] == [10, 9]
    page = await registry.evaluations.ListEvaluationSamples(
        pb.ListEvaluationSamplesRequest(parent=name, page_size=1, at_least=0.95)
    )
    (found,) = page.samples
    assert found.answers[0].text == "first 10"
    assert dict(found.answers[0].scores) == {"exact_match": 1.0}
    assert found.prompt[0].content == "q10"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"metric": "none"}, "METRIC_UNKNOWN"),
        ({"target_index": 5}, "FIELD_INVALID"),
        ({"page_token": "x"}, "PAGE_TOKEN_INVALID"),
    ],
)
async def test_a_question_about_rows_that_makes_no_sense_is_refused(
    registry: Registry, fields: dict[str, Any], reason: str
) -> None:
    await finished(registry, [sample(1, answer(exact_match=1.0))], [EXACT], [BASE])
    await registry.answer("evaluation_completed")
    request = pb.ListEvaluationSamplesRequest(parent=f"{PROJECT}/evaluations/{JOB_ID}", **fields)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await registry.evaluations.ListEvaluationSamples(request)
    assert support.refusal(caught.value).reason == reason


async def test_evaluations_are_listed_by_target_and_dataset_and_compared_on_shared_rows(
    registry: Registry,
) -> None:
    other = f"{PROJECT}/jobs/{new_ulid()}"
    version = f"{PROJECT}/models/m/versions/1"
    samples = [sample(row, answer(exact_match=float(row > 2))) for row in range(1, 7)]
    await finished(registry, samples, [EXACT], [BASE])
    samples = [sample(row, answer(exact_match=1.0)) for row in range(1, 9)]
    await finished(registry, samples, [EXACT], [version], job=other)
    strange = f"{PROJECT}/jobs/{new_ulid()}"
    await finished(registry, samples, [EXACT], [version], job=strange, dataset_digest="e" * 64)
    await registry.answer("evaluation_completed", 3)

    async def listed(**fields: Any) -> list[str]:
        request = pb.ListEvaluationsRequest(parent=PROJECT, **fields)
        return [each.job for each in (await registry.evaluations.ListEvaluations(request)).evaluations]

    assert set(await listed(target=version)) == {other, strange}
    assert await listed(target=BASE) == [JOB]
    assert len(await listed(dataset=f"{PROJECT}/datasets/questions")) == 3
    assert len(await listed(dataset=f"{PROJECT}/datasets/questions/versions/1")) == 3
    assert await listed(dataset=f"{PROJECT}/datasets/questions/versions/2") == []

    def side(job: str) -> pb.EvaluatedTarget:
        return pb.EvaluatedTarget(evaluation=f"{PROJECT}/evaluations/{job.rpartition('/')[2]}")

    async def compare(*jobs: str) -> pb.CompareEvaluationsResponse:
        request = pb.CompareEvaluationsRequest(parent=PROJECT, targets=[side(job) for job in jobs])
        return await registry.evaluations.CompareEvaluations(request)

    found = await compare(JOB, other)
    (only,) = found.comparisons
    assert (only.num_samples, only.wins, only.ties, only.losses) == (6, 2, 4, 0)
    assert only.difference == pytest.approx(2 / 6)
    assert list(found.targets) == [BASE, version]
    for jobs in ((JOB, strange), (JOB,)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await compare(*jobs)
        assert isinstance(support.refusal(caught.value), TunesmithError)
        assert caught.value.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)
