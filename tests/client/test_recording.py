"""Recording a run: what passes at the server does not end it."""

import json
from pathlib import Path

import pytest

import tunesmith
from tests.client.small_server import TOKEN, SmallServer
from tunesmith import courier
from tunesmith.errors import (
    Aborted,
    DeadlineExceeded,
    PermissionDenied,
    ResourceExhausted,
    TunesmithError,
    Unavailable,
)


@pytest.mark.parametrize(
    "refusal",
    [
        ResourceExhausted("PROJECT_FULL", "the project stores as many points as it may"),
        DeadlineExceeded("DEADLINE_EXCEEDED", "the call took too long"),
        Aborted("REVISION_CONFLICT", "another request changed the same thing"),
    ],
    ids=lambda error: error.reason,
)
def test_a_server_that_cannot_take_records_for_now_gets_them_later(
    server: SmallServer, tmp_path: Path, refusal: TunesmithError
) -> None:
    with tunesmith.init(address=server.address, token=TOKEN, folder=tmp_path) as run:
        server.do(lambda: server.state.refusals.extend([refusal] * 2))
        for step in range(10):
            run.log({"loss": float(step)}, step)
    assert server.state.records == {step + 1: float(step) for step in range(10)}
    assert list(tmp_path.iterdir()) == [], "the server has everything"


def test_a_program_whose_records_are_not_taken_says_that_it_lives(
    server: SmallServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "_RENEW_SECONDS", 0.0)
    full = ResourceExhausted("PROJECT_FULL", "the project stores as many points as it may")
    with tunesmith.init(address=server.address, token=TOKEN, folder=tmp_path) as run:
        begin = server.state.begin
        refused = 0

        async def no_records(context: object, call: str) -> None:
            nonlocal refused
            if call == "WriteRecords" and server.state.calls.count("RenewExternalRun") < 5:
                refused += 1
                server.state.refusals.append(full)
            await begin(context, call)

        monkeypatch.setattr(server.state, "begin", no_records)
        run.log({"loss": 1.0})
        server.wait_for_call("RenewExternalRun", 5)
    assert refused > 0
    assert server.state.records == {1: 1.0}


def test_the_first_record_after_a_pause_leaves_at_once_and_the_next_are_gathered(
    server: SmallServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "_RENEW_SECONDS", 3600.0)  # nothing else wakes it
    server.state.pause_ms = 5000
    with tunesmith.init(address=server.address, token=TOKEN, folder=tmp_path) as run:
        run.log({"loss": 0.0})
        server.wait_for_call("WriteRecords", 1)
        for step in range(1, 100):
            run.log({"loss": float(step)}, step)
    assert server.state.records == {step + 1: float(step) for step in range(100)}
    assert server.state.calls.count("WriteRecords") == 2, "the rest goes together, at the end without a wait"


def test_a_checkpoint_whose_upload_breaks_off_comes_whole_and_holds_nothing_else_up(
    server: SmallServer, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_bytes(b"w" * 100_000)
    away = [Unavailable("SHUTTING_DOWN", "the server is shutting down")]
    with tunesmith.init(address=server.address, token=TOKEN, folder=tmp_path / "runs") as run:
        server.do(lambda: server.state.refused.update({"UploadBlob": away * 10_000}))
        run.checkpoint(tmp_path / "out", step=5, keep=2)
        server.wait_for_call("UploadBlob", 7)
        run.log({"loss": 1.0})
        server.wait_for_call("WriteRecords", 1)
        assert server.state.checkpoints == {}, "its upload still fails"
        server.do(lambda: server.state.refused.clear())
    (request,) = server.state.checkpoints.values()
    assert (request.step, request.keep, request.size_bytes) == (5, 2, 100_000)
    manifest = json.loads(server.state.blobs[request.digest])
    assert [server.state.blobs[file["sha256"]] for file in manifest["files"]] == [b"w" * 100_000]
    assert list((tmp_path / "runs").iterdir()) == [], "the server has everything"


def test_a_checkpoint_the_server_refuses_for_good_stays_and_is_told(
    server: SmallServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").write_bytes(b"x")
    denied = PermissionDenied("PERMISSION_MISSING", "the caller's role lacks the permission")
    run = tunesmith.init(address=server.address, token=TOKEN, folder=tmp_path / "runs")
    server.do(lambda: server.state.refused.update({"CommitExternalCheckpoint": [denied]}))
    run.checkpoint(tmp_path / "model")
    run.log({"loss": 1.0})
    assert not run.finish()
    assert server.state.records == {1: 1.0}, "the records do not wait for it"
    told = capsys.readouterr().err
    assert "lacks the permission; its checkpoints stay in" in told
    assert [path.name for path in (run.folder / "parcels").iterdir()] == ["000001"]
