"""The run folder as the agent keeps it."""

import json
from pathlib import Path

import pytest

from tunesmith.api.nodes.v1 import events_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_agent.folder import CHECKPOINT, RUN, STOP, Notes, RunFolder
from tunesmith_agent.main import AgentSettings


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.make(Notes("projects/default/jobs/j", 1, "n1"), events_pb2.AssignAttempt())
    return made


def test_a_late_wish_for_a_checkpoint_does_not_take_a_stop_back(folder: RunFolder) -> None:
    control = folder.path / "control"
    for word, stands in ((CHECKPOINT, CHECKPOINT), (RUN, RUN), (STOP, STOP), (CHECKPOINT, STOP)):
        folder.command(word)
        assert control.read_text() == stands + "\n"


def test_notes_of_the_version_before_ranks_are_read(folder: RunFolder) -> None:
    path = folder.path / "agent.json"
    former = json.loads(path.read_text()) | {"pid": 7, "start_ticks": 8}
    del former["peers"], former["stalled"]
    path.write_text(json.dumps(former))
    notes = folder.notes()
    assert notes is not None
    assert (notes.pid, notes.start_ticks, notes.peers) == (7, 8, [])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"torch": "2.13.0", "threads": 4}', {"torch": "2.13.0", "threads": "4"}),
        ('{"a b": "1", "Ä": "2", "": "3", "ok": "4"}', {"ok": "4"}),
        (json.dumps({"long": "x" * 10_000}), {"long": "x" * 500}),
        (json.dumps({f"n{number}": "" for number in range(100)}), {f"n{number}": "" for number in range(64)}),
        ('["torch"]', {}),
        ("{torn", {}),
    ],
)
def test_what_a_trainer_computes_with_is_told_within_the_limits_of_a_report(
    folder: RunFolder, text: str, told: dict[str, str]
) -> None:
    assert folder.environment() == {}
    (folder.path / "environment.json").write_text(text)
    assert folder.environment() == told


def test_the_peak_that_the_operator_gave_reaches_the_trainer(folder: RunFolder) -> None:
    settings = AgentSettings(gpu_peak_tflops=123.5)
    notes = Notes("projects/default/jobs/j", 1, "n1")
    folder.write_run(notes, events_pb2.AssignAttempt(), {}, None, settings.peak())
    assert json.loads((folder.path / "run.json").read_text())["gpu_peak_tflops"] == 123.5
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument, match="0 or more"):
            AgentSettings(gpu_peak_tflops=wrong).peak()
