"""The SDK through its public door, against a real gRPC server."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.client.small_server import TOKEN, SmallServer, away
from tunesmith import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from tunesmith.api.jobs.v1 import jobs_pb2, state_pb2
from tunesmith.api.registry.v1 import datasets_pb2

SPEC = {"experiment": "demo", "base_model": "tiny", "dataset": "chat"}


def _valid(job: jobs_pb2.Job) -> None:
    job.state = state_pb2.JOB_STATE_QUEUED


def test_the_public_names_are_these_and_no_others() -> None:
    assert tunesmith.__all__ == [
        "Aborted",
        "AlreadyExists",
        "AsyncClient",
        "Client",
        "Curves",
        "DeadlineExceeded",
        "FailedPrecondition",
        "Internal",
        "InvalidArgument",
        "Job",
        "NotFound",
        "PermissionDenied",
        "Recording",
        "ResourceExhausted",
        "Run",
        "RunTable",
        "Series",
        "TunesmithError",
        "Unauthenticated",
        "Unavailable",
        "Unimplemented",
        "Violation",
        "__version__",
        "finish",
        "init",
        "log",
    ]
    assert all(getattr(tunesmith, name) is not None for name in tunesmith.__all__)


def test_a_submitted_job_is_watched_to_its_end(server: SmallServer, client: Client) -> None:
    job = client.jobs.submit(SPEC)
    assert (job.state, job.display_name) == ("VALIDATING", "demo-1")
    seen = []
    for update in job.watch():
        seen.append(update.state)
        if update.state == state_pb2.JOB_STATE_VALIDATING:
            server.change(job.id, state=state_pb2.JOB_STATE_RUNNING)
        elif update.state == state_pb2.JOB_STATE_RUNNING:
            server.change(job.id, state=state_pb2.JOB_STATE_SUCCEEDED)
    assert seen == [1, 4, 9]
    assert job.succeeded


async def test_the_same_methods_are_awaited_on_the_async_client(server: SmallServer) -> None:
    async with AsyncClient(server.address, TOKEN) as client:
        job = await client.jobs.submit(SPEC)
        server.change(job.id, state=state_pb2.JOB_STATE_SUCCEEDED)
        states = [update.state async for update in job.watch()]
        assert states == [state_pb2.JOB_STATE_SUCCEEDED]
        assert [found.id async for found in client.jobs.list()] == [job.id]
        assert (await job.wait(timeout=5)).succeeded


def test_a_call_is_repeated_while_the_server_is_unavailable_and_acts_once(
    server: SmallServer, client: Client
) -> None:
    server.state.refusals += [away(), away()]
    job = client.jobs.submit(SPEC)
    assert server.state.calls.count("CreateJob") == 3
    assert list(server.state.jobs) == [job.id]


def test_the_same_request_id_makes_one_job(client: Client) -> None:
    first, second = (client.jobs.submit(SPEC, request_id="only-once") for _ in range(2))
    assert first.id == second.id


def test_an_error_that_will_not_pass_is_not_repeated(server: SmallServer, client: Client) -> None:
    with pytest.raises(NotFound) as caught:
        client.jobs.get("demo-77")
    assert caught.value.reason == "JOB_NOT_FOUND"
    assert server.state.calls == ["GetJob"]


def test_a_server_that_is_not_there_is_named_with_a_remedy(server: SmallServer, client: Client) -> None:
    server.stop()
    with pytest.raises(Unavailable, match=f"cannot reach Tunesmith at {server.address}") as caught:
        client.jobs.get("demo-1")
    assert "tunesmith up" in caught.value.remedy


def test_a_watch_goes_on_from_its_revision_when_streams_are_cut(server: SmallServer, client: Client) -> None:
    job = client.jobs.submit(SPEC)
    server.state.cut_streams_after = 1
    gaps: list[object] = []
    steps = []
    for update in job.watch(on_gap=gaps.append):
        steps.append(update.progress.step)
        done = update.progress.step == 3
        state = state_pb2.JOB_STATE_SUCCEEDED if done else state_pb2.JOB_STATE_RUNNING
        progress = state_pb2.Progress(step=update.progress.step + (not done))
        server.change(job.id, state=state, progress=progress)
    assert steps == [0, 1, 2, 3, 3]
    watches = [call for call in server.state.calls if call.startswith("WatchJob")]
    assert watches == [f"WatchJob from {revision}" for revision in range(5)]
    assert len(gaps) == 4


def test_a_watch_survives_a_server_that_restarts(server: SmallServer, client: Client) -> None:
    job = client.jobs.submit(SPEC)
    gone = threading.Event()

    def come_back() -> None:
        assert gone.wait(10)
        server.start()
        server.change(job.id, state=state_pb2.JOB_STATE_SUCCEEDED)

    helper = threading.Thread(target=come_back)
    helper.start()
    seen = []
    for update in job.watch(on_gap=lambda error: gone.set()):
        seen.append(update.state)
        if len(seen) == 1:
            server.stop()
    helper.join()
    assert seen == [state_pb2.JOB_STATE_VALIDATING, state_pb2.JOB_STATE_SUCCEEDED]


def test_a_watch_of_a_refused_caller_ends_with_the_error(server: SmallServer) -> None:
    with Client(server.address, "a-bad-token") as client, pytest.raises(Unauthenticated) as caught:
        list(client.jobs.watch())
    assert caught.value.reason == "TOKEN_INVALID"
    assert len(server.state.calls) == 1


def test_all_jobs_are_watched_together_across_cuts(server: SmallServer, client: Client) -> None:
    server.state.cut_streams_after = 1
    first = client.jobs.submit(SPEC)
    names = []
    for message in client.jobs.watch():
        names.append([job.display_name for job in message.jobs])
        if len(names) == 2:
            break
        client.jobs.submit(SPEC)
    assert names == [[first.display_name], ["demo-2"]]


def test_waiting_ends_at_its_deadline(client: Client) -> None:
    job = client.jobs.submit(SPEC)
    with pytest.raises(DeadlineExceeded, match=r"demo-1 was still VALIDATING after 0\.2 s"):
        job.wait(timeout=0.2)


def test_validated_returns_as_soon_as_the_inputs_are_checked(server: SmallServer, client: Client) -> None:
    server.state.validate = _valid
    assert client.jobs.submit(SPEC).validated(timeout=10).state == "QUEUED"


def test_a_listing_turns_its_pages_and_stops_at_its_limit(server: SmallServer, client: Client) -> None:
    for number in range(450):
        job = jobs_pb2.Job(job_id=str(number), state=state_pb2.JOB_STATE_RUNNING)
        server.do(partial(server.state.put, job))
    assert [job.id for job in client.jobs.list()] == [str(number) for number in reversed(range(450))]
    assert len(list(client.jobs.list(limit=3))) == 3
    assert len(list(client.jobs.list(states=["failed"]))) == 0
    with pytest.raises(InvalidArgument, match="runing is no state"):
        list(client.jobs.list(states=["runing"]))


def test_logs_are_followed_to_the_end_of_the_job(server: SmallServer, client: Client) -> None:
    job = client.jobs.submit(SPEC)
    server.log("loading the model", "step 1 loss 3.5")
    seen = []
    for line in job.logs(follow=True):
        seen.append(line.text)
        if line.text == "step 1 loss 3.5":
            server.log("step 2 loss 3.1")
        elif line.text == "step 2 loss 3.1":
            server.change(job.id, state=state_pb2.JOB_STATE_SUCCEEDED)
            # A line that is shipped after the job ended is printed all the same.
            server.log("done")
    assert seen == ["loading the model", "step 1 loss 3.5", "step 2 loss 3.1", "done"]
    assert [line.text for line in job.logs(contains="loss", tail=1)] == ["step 2 loss 3.1"]


def test_a_curve_comes_in_columns(server: SmallServer, client: Client) -> None:
    job = client.jobs.submit(SPEC)
    server.state.curve = [(1, 3.5), (2, 3.25)]
    curve = client.metrics.series(job, "train/loss")["train/loss"]
    assert [*curve.steps] == [1, 2]
    assert [*curve.values] == [3.5, 3.25]
    assert [*curve.times] == [1.0, 2.0]
    assert client.metrics.series("demo-1", "train/loss")["train/loss"].num_points == 2


def test_a_known_file_is_not_sent_again(server: SmallServer, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b'{"text": "hello"}\n' * 200_000)
    size = path.stat().st_size
    heard: list[tuple[int, int]] = []
    answer = client.datasets.import_file(path, "chat", on_progress=lambda *pair: heard.append(pair))
    assert answer.version.num_rows == 200_000
    assert heard[-1] == (size, size)
    assert len(heard) > 3
    client.datasets.import_file(path, "chat")
    assert server.state.uploads == 1


def test_what_the_server_reads_itself_is_named_as_models_are(server: SmallServer, client: Client) -> None:
    client.datasets.import_from("hf:me/rows.json@v2", "rows", files="data/*")
    client.datasets.import_from("https://data.example.org/rows.csv?key=1", "rows")
    client.datasets.import_from("shared/rows.jsonl", "rows")
    hub, address, path = server.state.imports
    assert (hub.hub.repo, hub.hub.revision, hub.hub.files, hub.format) == ("me/rows.json", "v2", "data/*", 0)
    assert (address.url, address.format) == (
        "https://data.example.org/rows.csv?key=1",
        datasets_pb2.DATASET_FORMAT_CSV,
    )
    assert (path.path, path.format) == ("shared/rows.jsonl", datasets_pb2.DATASET_FORMAT_JSONL)
    with pytest.raises(InvalidArgument, match="xls is no format"):
        client.datasets.import_from("shared/rows.xls", "rows", format="xls")


def test_an_upload_is_repeated_while_the_server_is_unavailable(
    server: SmallServer, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text('{"text": "hello"}\n')
    server.state.refusals = []
    original = server.state.begin

    async def fail_first_upload(context: Any, call: str) -> None:
        if call == "UploadBlob" and "UploadBlob" not in server.state.calls:
            server.state.refusals.append(away())
        await original(context, call)

    server.state.begin = fail_first_upload
    client.datasets.import_file(path, "chat")
    assert server.state.calls.count("UploadBlob") == 2
    assert server.state.uploads == 1


def test_an_upload_that_the_server_ends_early_tells_the_servers_reason(
    server: SmallServer, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b'{"text": "hello"}\n' * 500_000)
    original = server.state.begin

    async def full_disk(context: Any, call: str) -> None:
        if call == "UploadBlob":
            server.state.refusals.append(ResourceExhausted("DISK_FULL", "no space is left for blobs"))
        await original(context, call)

    server.state.begin = full_disk
    for _ in range(5):
        with pytest.raises(ResourceExhausted, match="no space is left"):
            client.datasets.import_file(path, "chat")


def test_a_base_model_is_sent_without_hidden_files(
    server: SmallServer, client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    base = client.models.import_base(folder, "tiny")
    assert [file.path for file in base.manifest.files] == ["config.json", "tokenizer/vocab.json"]
    assert len(server.state.blobs) == 1  # both files have the same content


@pytest.mark.parametrize("what", ["missing.jsonl", "."])
def test_a_file_that_cannot_be_read_is_named(client: Client, tmp_path: Path, what: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot read") as caught:
        client.datasets.import_file(tmp_path / what, "chat")
    assert caught.value.field == "path"


def _fail(done: int, total: int) -> None:
    raise ZeroDivisionError


def test_what_a_progress_callback_raises_reaches_the_caller(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text('{"text": "hello"}\n')
    with pytest.raises(ZeroDivisionError):
        client.datasets.import_file(path, "chat", on_progress=_fail)


def test_a_watch_that_is_left_early_ends_its_stream(server: SmallServer, client: Client) -> None:
    job = client.jobs.submit(SPEC)
    for _ in job.watch():
        break
    # The next call would hang or fail if the abandoned stream had broken the connection.
    assert client.jobs.get(job.id).id == job.id


@pytest.mark.parametrize("closed", [True, False])
def test_a_program_ends_though_it_left_a_listing_open(
    server: SmallServer, client: Client, closed: bool
) -> None:
    client.jobs.submit(SPEC)
    program = f"""
from tunesmith import Client
client = Client({server.address!r}, {TOKEN!r})
jobs = client.jobs.list()
print(next(jobs).id)
if {closed}:
    client.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) == 1


async def test_many_async_calls_share_one_connection(server: SmallServer) -> None:
    async with AsyncClient(server.address, TOKEN) as client:
        jobs = await asyncio.gather(*(client.jobs.submit(SPEC) for _ in range(20)))
    assert len({job.id for job in jobs}) == 20


def test_cancelling_now_and_gracefully(client: Client) -> None:
    cancel: Callable[..., Any] = client.jobs.submit(SPEC).cancel
    assert cancel(reason="enough").state == "CANCELLING"
    assert cancel(now=True).state == "CANCELLED"
