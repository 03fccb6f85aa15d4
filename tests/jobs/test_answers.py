"""Scorers in training as the jobs service sees them: what is refused, and which checkpoints are best."""

from typing import Any

import pytest

from tests.jobs.hands import Jobs
from tunesmith.api.jobs.v1 import evaluation_pb2 as pb
from tunesmith.api.jobs.v1 import spec_pb2
from tunesmith.errors import TunesmithError

EXACT = pb.Scorer(exact_match=pb.ExactMatchScorer())
COURSE: dict[str, Any] = {"eval_every_steps": 1, "eval_fraction": 0.1}


async def test_the_best_checkpoints_are_those_that_were_judged_best(jobs: Jobs) -> None:
    await jobs.join()
    answers = pb.AnswersSpec(scorers=[EXACT], best_metric="exact_match")
    training = spec_pb2.TrainingSpec(keep_checkpoints=1, keep_best_checkpoints=1, answers=answers, **COURSE)
    job = await jobs.running(training=training)
    assert (job.spec.training.answers.max_rows, job.spec.training.answers.generation.max_new_tokens) == (
        32,
        64,
    )
    # Step 1 has the least loss, step 2 the most exact answers.
    for step, loss, exact in ((1, 1.0, 0.1), (2, 5.0, 0.9), (3, 4.0, 0.5), (4, 3.0, 0.6)):
        await jobs.commit(job, step, eval_loss=loss, judged=-exact)
    expired = [event.checkpoint.step for event in await jobs.events(job, "checkpoint_expired")]
    assert expired == [1]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"answers": pb.AnswersSpec(scorers=[EXACT])}, "training.answers"),
        ({**COURSE, "answers": pb.AnswersSpec(scorers=[EXACT, EXACT])}, "scorers[1].name"),
        ({**COURSE, "answers": pb.AnswersSpec(scorers=[EXACT], best_metric="bleu")}, "best_metric"),
        ({**COURSE, "answers": pb.AnswersSpec()}, "training.answers.scorers"),
        (
            {**COURSE, "answers": pb.AnswersSpec(scorers=[pb.Scorer(perplexity=pb.PerplexityScorer())])},
            "scorers[0]",
        ),
        (
            {**COURSE, "answers": pb.AnswersSpec(scorers=[pb.Scorer(json=pb.JsonScorer(schema="{"))])},
            "scorers[0].json.schema",
        ),
    ],
)
async def test_answers_that_nobody_could_judge_are_refused_by_name(
    jobs: Jobs, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(TunesmithError) as refused:
        await jobs.submit(training=spec_pb2.TrainingSpec(**fields))
    error = refused.value
    assert field in " ".join([error.field, *(each.path for each in error.violations)])
