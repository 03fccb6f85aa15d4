"""The run folder as the agent keeps it."""

import json
from pathlib import Path

import pytest

from tunesmith.api.nodes.v1 import events_pb2
from tunesmith_agent.folder import CHECKPOINT, RUN, STOP, Notes, RunFolder


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
