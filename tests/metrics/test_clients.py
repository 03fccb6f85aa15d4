"""Curves and runs as people get them: SDK, command line, REST, through a gateway."""

import asyncio
import csv
import io
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import pytest_asyncio

from tests.metrics.support import JOB, PARENT, batch, running_metrics, send
from tests.metrics.test_query import stored
from tests.metrics.test_runs import PROJECT, job_id, spec, tell
from tests.support.stubs import INTERNAL_TOKEN, running_service
from tests.support.wait import until_async
from tunesmith import AsyncClient, profile
from tunesmith.api.jobs.v1 import events_pb2
from tunesmith.cli import main
from tunesmith.cli.plot import plot
from tunesmith.errors import InvalidArgument
from tunesmith.metrics import Series

ADMIN = "admin-test-token"
NUM = 60_000  # more points than fit into one message, as it is limited here
pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Doors:
    """A gateway's addresses and a client of it."""

    address: str
    http: str
    client: AsyncClient


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    folder = tmp_path_factory.mktemp("doors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith_metrics.drawing._MAX_BYTES", 1024 * 1024)
        async with opened(folder) as found:
            yield found


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Doors]:
    """The metrics service with a long curve and three runs, behind a gateway."""
    async with running_metrics(folder / "metrics") as metrics:
        settings = {
            "admin_token": ADMIN,
            "internal_token": INTERNAL_TOKEN,
            "metrics_address": metrics.running.address,
        }
        values = np.sin(np.arange(1, NUM + 1) / 1e4).tolist()
        batches = [batch(at + 1, [[v] for v in values[at : at + 10_000]]) for at in range(0, NUM, 10_000)]
        await asyncio.gather(*(send(metrics.bus, each) for each in batches))
        small = batch(NUM + 1, [[0.5, 2.0], [math.nan, 3.0]], keys=("eval/loss", "odd, name"))
        await send(metrics.bus, small)
        for index in range(3):
            await tell(metrics, index, index + 1, "created", created=events_pb2.JobCreated(spec=spec(index)))
            await send(metrics.bus, batch(1, [[1.0 + index]], job_id=job_id(index)))
        await stored(metrics, NUM + 2)
        async with (
            running_service("gateway", metrics.server, folder / "gateway", **settings) as gateway,
            AsyncClient(gateway.address, ADMIN) as client,
        ):

            async def counted() -> bool:
                return (await client.runs.query("has train/loss and has adapter.lora.r")).total == 3

            await until_async(counted, "the runs are in the table")
            yield Doors(gateway.address, gateway.facts["http_address"], client)


async def test_curves_of_any_length_as_numpy_and_pandas(doors: Doors) -> None:
    metrics = doors.client.metrics
    whole = (await metrics.series(JOB, "train/loss"))["train/loss"]
    assert (len(whole.steps), whole.steps[-1], whole.num_points) == (NUM, NUM, NUM)
    table = whole.to_numpy()
    assert table.dtype.names == ("step", "time", "value")
    assert table["value"][9_999] == math.sin(1.0)
    curves = await metrics.series(JOB, ["eval/loss", "odd, name"], smoothing=0.5, axis="wall-time")
    frame = curves.to_pandas()
    assert list(frame.columns) == ["eval/loss", "odd, name"]
    assert frame.index.tolist() == [NUM + 1, NUM + 2]
    assert math.isnan(frame["eval/loss"].iloc[1])
    assert len(curves["eval/loss"].places) == 2
    shape = await metrics.series(JOB, "train/loss", max_points=50, reduction="lttb")
    assert len(shape["train/loss"].steps) == 50
    compared = await metrics.compare([JOB, job_id(1)], ["train/loss"], max_points=10)
    assert {job: len(found["train/loss"].steps) for job, found in compared.items()} == {JOB: 10, job_id(1): 1}
    (described,) = await metrics.describe(JOB, ["odd, name"])
    assert described.mean == 2.5
    with pytest.raises(InvalidArgument, match="axis"):
        await metrics.series(JOB, axis="sideways")


async def test_runs_are_typed_rows_and_a_frame(doors: Doors) -> None:
    found = await doors.client.runs.query("adapter.lora.r >= 16", order_by="train/loss desc", limit=1)
    assert (len(found), found.total) == (1, 2)
    (run,) = found
    assert (run.name, run.metrics["train/loss"], run.config["adapter.lora.r"]) == ("demo-002", 3.0, "24")
    assert run.created is not None
    assert run.created.year == 2026
    frame = (await doors.client.runs.query("has adapter.lora.r", order_by="name")).to_pandas()
    assert frame["train/loss"].tolist() == [1.0, 2.0, 3.0]
    assert frame.index.tolist() == [job_id(index) for index in range(3)]
    assert "config.training.learning_rate" in frame.columns
    columns = await doors.client.runs.columns()
    assert columns.metrics[0].name == "train/loss"
    with pytest.raises(InvalidArgument, match="column 13"):
        await doors.client.runs.query("train/loss <")


async def test_files_are_whole_or_not_there(doors: Doors, tmp_path: Path) -> None:
    path = await doors.client.metrics.export(JOB, tmp_path / "all.parquet")
    assert pa.parquet.read_table(path).num_rows == NUM + 4
    folder = tmp_path / "board"
    folder.mkdir()
    event_file = await doors.client.metrics.export(JOB, folder, keys=["eval/loss"])
    assert event_file.parent == folder
    assert event_file.name.startswith("events.out.tfevents.")
    with pytest.raises(InvalidArgument, match="format"):
        await doors.client.metrics.export(JOB, tmp_path / "all.unknown")
    with pytest.raises(InvalidArgument, match="cannot be written"):
        await doors.client.metrics.export(JOB, tmp_path / "no" / "folder.csv")
    there = await asyncio.to_thread(lambda: sorted(each.name for each in tmp_path.iterdir()))
    assert there == ["all.parquet", "board"]


async def test_rest_answers_a_file_itself(doors: Doors) -> None:
    async with httpx.AsyncClient(
        base_url=f"http://{doors.http}/api/v1", headers={"authorization": f"Bearer {ADMIN}"}, trust_env=False
    ) as rest:
        answer = await rest.get(f"/{PARENT}/series:export?format=csv&keys=eval/loss")
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{JOB}.csv"
        rows = list(csv.reader(io.StringIO(answer.text)))
        assert [row[3] for row in rows] == ["value", "0.5", "nan"]
        answer = await rest.get(f"/{PARENT}/series:export?format=EXPORT_FORMAT_ARROW")
        assert pa.ipc.open_stream(answer.content).read_all().num_rows == NUM + 4
        wrong = await rest.get(f"/{PARENT}/series:export?format=xml")
        assert (wrong.status_code, wrong.json()["field"]) == (400, "format")
        assert "parquet" in wrong.json()["remedy"]
        none = await rest.get(f"/{PARENT}/series:export")
        assert (none.status_code, none.json()["field"]) == (400, "format")
        table = await rest.get(f"/{PROJECT}/runs", params={"filter": "train/loss <"})
        assert (table.status_code, table.json()["reason"]) == (400, "FILTER_INVALID")
        document = (await rest.get("/openapi.json")).json()
        (media,) = document["paths"]["/projects/{project}/jobs/{job}/series:export"]["get"]["responses"][
            "200"
        ]["content"]
        assert media == "application/octet-stream"


async def test_the_command_line_shows_curves_and_runs(
    doors: Doors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNESMITH_CONFIG_DIR", str(tmp_path / "config"))
    profile.save(profile.Profile(address=doors.address, token=ADMIN))

    async def run(*arguments: str, code: int = 0) -> str:
        assert await asyncio.to_thread(main, arguments) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    listed = await run("metrics", JOB)
    assert "train/loss" in listed
    assert "60.0k" in listed
    rows = list(csv.reader(io.StringIO(await run("metrics", JOB, "eval/loss"))))
    assert [row[3] for row in rows] == ["value", "0.5", "nan"]
    (curve,) = json.loads(await run("metrics", JOB, "eval/loss", "--json"))
    assert curve["values"] == [0.5, "NaN"]
    drawn = await run("metrics", JOB, "train/loss", "--plot")
    assert drawn.startswith("train/loss\n")
    assert "did you mean train/loss?" in await run("metrics", JOB, "train/los", code=1)
    written = json.loads(await run("metrics", "export", JOB, str(tmp_path / "x.jsonl"), "--json"))
    assert (tmp_path / "x.jsonl").stat().st_size == written["size_bytes"]
    table = await run(
        "runs", "has adapter.lora.r", "--sort", "train/loss", "--columns", "train/loss,label.team"
    )
    assert [line.split() for line in table.splitlines()][1:] == [
        ["demo-000", "VALIDATING", "1", "ads", "1"],
        ["demo-001", "VALIDATING", "2", "search", "1"],
        ["demo-002", "VALIDATING", "3", "ads", "1"],
    ]
    assert [each["name"] for each in json.loads(await run("runs", "train/loss = 2", "--json"))] == [
        "demo-001"
    ]
    assert "column 13" in await run("runs", "train/loss <", code=1)


async def test_a_plot_has_its_extremes_at_top_and_bottom_and_a_gap_for_nan() -> None:
    values = [0.0, 1.0, math.nan, 1.0, 0.0]
    curve = Series("k", [1, 2, 3, 4, 5], values, [0.0] * 5, [], [], 5)
    lines = plot(curve, 52, 3, "step")
    assert lines[0] == "k"
    assert [line[:10].strip() for line in lines[1:4]] == ["1", "0.5", "0"]
    top, bottom = lines[1][12:], lines[3][12:]
    assert bottom[0] != "⠀"
    assert bottom[-1] != "⠀"
    assert top[len(top) // 2] == "⠀"
    assert lines[4].strip().startswith("1")
    assert lines[4].endswith("5 step")
    assert plot(Series("k", [1], [math.nan], [0.0], [], [], 1), 52, 3, "step") == ["k: no finite value"]
