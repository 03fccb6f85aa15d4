"""Recording a run: what passes at the server does not end it."""

from pathlib import Path

import pytest

import tunesmith
from tests.client.small_server import TOKEN, SmallServer
from tunesmith import recording
from tunesmith.errors import Aborted, DeadlineExceeded, ResourceExhausted, TunesmithError


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
    monkeypatch.setattr(recording, "_RENEW_SECONDS", 0.0)
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
