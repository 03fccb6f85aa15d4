"""What an agent makes of the remains of a group of ranks."""

from typing import Any

import pytest

from tunesmith.api.jobs.v1 import spec_pb2, state_pb2
from tunesmith_agent.endings import Remains, end_of
from tunesmith_agent.folder import Notes

FAILED, KILLED = state_pb2.ATTEMPT_STATE_FAILED, state_pb2.ATTEMPT_STATE_KILLED


def notes(**told: Any) -> Notes:
    """Notes of an attempt that ran."""
    return Notes("projects/default/jobs/01k", 1, "n1", started=True, **told)


def word(result: str = "", failure_class: str = "", reason: str = "") -> dict[str, Any]:
    """A rank's last word; without a result it died in the middle."""
    finished = {"result": result, "failure_class": failure_class, "reason": reason}
    return {"phase": "TRAIN_BATCH_FORWARD", "finished": finished if result else None}


def test_the_rank_that_failed_first_knows_why_and_not_those_that_lost_it() -> None:
    remains = Remains([word("failed", "INFRA", "PEER_LOST"), word("failed", "OOM", "OUT_OF_MEMORY")])
    report = end_of(remains, notes())
    assert (report.state, report.failure.reason) == (FAILED, "OUT_OF_MEMORY")


def test_a_rank_that_died_without_a_word_is_named() -> None:
    report = end_of(Remains([word(), word()], exit_codes=[-9, -9], first_dead=1), notes())
    assert report.failure.failure_class == state_pb2.FAILURE_CLASS_INFRA
    assert report.failure.message.startswith("rank 1 died")


def test_a_rank_that_was_lost_is_told_rather_than_that_its_peers_lost_it() -> None:
    remains = Remains([word("failed", "INFRA", "PEER_LOST"), word()], exit_codes=[70, -9], first_dead=1)
    assert end_of(remains, notes()).failure.reason == "PROCESS_DIED"


def test_rank_0_decides_whether_the_training_is_complete() -> None:
    done = end_of(Remains([word("completed"), word()]), notes())
    assert done.state == state_pb2.ATTEMPT_STATE_COMPLETED
    not_done = end_of(Remains([word(), word("completed")]), notes())
    assert not_done.state == FAILED


@pytest.mark.parametrize("told", ["told_to_kill", "told_to_stop"])
def test_what_we_ended_ourselves_is_no_failure(told: str) -> None:
    assert end_of(Remains([word()]), notes(**{told: True})).state == KILLED


def test_a_hang_is_told_as_a_hang() -> None:
    report = end_of(Remains([word()]), notes(stalled=True))
    assert report.failure.failure_class == state_pb2.FAILURE_CLASS_STALLED
    assert "TRAIN_BATCH_FORWARD" in report.failure.message


@pytest.mark.parametrize(
    ("size", "advice"),
    [
        (8, "micro_batch_size to 4 and training.gradient_accumulation_steps to 4"),
        (9, "micro_batch_size to 3 and training.gradient_accumulation_steps to 6"),
        (1, "max_length below 512"),
    ],
)
def test_an_oom_kill_comes_with_the_setting_to_change(size: int, advice: str) -> None:
    training = spec_pb2.TrainingSpec(micro_batch_size=size, gradient_accumulation_steps=2, max_length=512)
    remains = Remains([word()], [-9], oom_killed=True, spec=spec_pb2.JobSpec(training=training))
    failure = end_of(remains, notes()).failure
    assert failure.failure_class == state_pb2.FAILURE_CLASS_OOM
    assert advice in failure.remedy


def test_a_full_disk_is_told_even_when_the_trainer_could_not() -> None:
    assert end_of(Remains([word()], disk_free_bytes=0), notes()).failure.reason == "DISK_FULL"
