"""Files with curves: what was logged comes back from each of them, read by somebody else's code."""

import csv
import io
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.metrics.support import PARENT, TIME_US, Metrics, batch, running_metrics, send
from tests.metrics.test_query import stored
from tunesmith.api.metrics.v1 import events_pb2, export_pb2, metrics_pb2

KEYS = ("=cmd()", "train/loss, of ü", "x")
NUM = 33_000  # more than one piece of each form


async def _file(
    service: Metrics, form: int, **fields: object
) -> tuple[bytes, export_pb2.ExportSeriesResponse]:
    request = export_pb2.ExportSeriesRequest(parent=PARENT, format=form, **fields)  # type: ignore[arg-type]
    parts = [part async for part in service.metrics.ExportSeries(request)]
    assert not any(part.content_type for part in parts[1:])
    assert max(len(part.data) for part in parts) <= 1 << 20
    return b"".join(part.data for part in parts), parts[0]


def _value(step: int) -> float:
    return {3: math.nan, 4: math.inf, 5: -math.inf}.get(step, step / 3)


async def test_every_form_holds_every_point(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        for start in range(0, NUM, 11_000):
            rows = [[_value(step), 0.5, -1.0] for step in range(start + 1, start + 11_001)]
            await send(service.bus, batch(start + 1, rows, keys=KEYS))
        await stored(service, NUM)
        content, first = await _file(service, export_pb2.EXPORT_FORMAT_ARROW)
        assert first.content_type == "application/vnd.apache.arrow.stream"
        assert first.file_name.endswith(".arrows")
        _check_table(pa.ipc.open_stream(content).read_all())
        content, _ = await _file(service, export_pb2.EXPORT_FORMAT_PARQUET)
        _check_table(pa.parquet.read_table(io.BytesIO(content)))
        content, _ = await _file(service, export_pb2.EXPORT_FORMAT_CSV, max_step=9_000)
        table = list(csv.reader(io.StringIO(content.decode(), newline="")))
        assert table[0] == ["key", "step", "time", "value"]
        assert [row[0] for row in table[1::9_000]] == ["'=cmd()", *KEYS[1:]], "a formula is a text"
        assert [float(row[3]) for row in table[1:3]] == [1 / 3, 2 / 3]
        assert table[1][2] == "2026-09-21T14:13:20.001000Z"
        assert len(table) == 1 + 3 * 9_000
        content, _ = await _file(service, export_pb2.EXPORT_FORMAT_JSONL, keys=[KEYS[0], "none"])
        lines = [json.loads(line) for line in content.splitlines()]
        assert [line["value"] for line in lines[:6]] == [1 / 3, 2 / 3, "NaN", "Infinity", "-Infinity", 2.0]
        assert (len(lines), lines[-1]["step"], lines[0]["key"]) == (NUM, NUM, KEYS[0])


def _check_table(table: pa.Table) -> None:
    assert table.num_rows == 3 * NUM
    assert table.column_names == ["key", "step", "time", "value"]
    assert [table["key"][at].as_py() for at in (0, NUM, 3 * NUM - 1)] == list(KEYS)
    values = table["value"].to_numpy()
    assert math.isnan(values[2])
    assert values[3:5].tolist() == [math.inf, -math.inf]
    assert values[5:NUM].tolist() == [step / 3 for step in range(6, NUM + 1)]
    assert table["step"].to_numpy()[: NUM + 1].tolist() == [*range(1, NUM + 1), 1]
    assert table["time"].type == pa.timestamp("us", tz="UTC")
    assert table["time"][0].cast(pa.int64()).as_py() == TIME_US + 1000


async def test_tensorboard_reads_scalars_texts_and_histograms(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        steps = [0, 127, 128, 16_384, 10_000_000_000]
        for seq, step in enumerate(steps, 1):
            await send(service.bus, batch(seq, [[step / 8]], first_step=step))
        rich = events_pb2.MetricBatch(
            job_id=PARENT.rpartition("/")[2],
            epoch=1,
            first_seq=6,
            num_records=3,
            keys=["says", "weights", "seen"],
        )
        rich.rich.add(key_index=0, step=10, time_us=TIME_US, text="hello ü")
        histogram = events_pb2.Histogram(edges=[-1.0, 0.0, 2.0], counts=[3, 5])
        rich.rich.add(key_index=1, step=11, time_us=TIME_US, histogram=histogram)
        picture = events_pb2.Picture(digest="0" * 64, media_type="image/png")
        rich.rich.add(key_index=2, step=12, time_us=TIME_US, picture=picture)
        await send(service.bus, rich)
        await stored(service, 8)
        content, first = await _file(service, export_pb2.EXPORT_FORMAT_TENSORBOARD)
        (tmp_path / "tb").mkdir()
        (tmp_path / "tb" / first.file_name).write_bytes(content)
        read = EventAccumulator(str(tmp_path / "tb"), size_guidance={"scalars": 0})
        read.Reload()
        scalars = read.Scalars("train/loss")
        assert [event.step for event in scalars] == steps
        assert [event.value for event in scalars] == [step / 8 for step in steps]
        assert scalars[0].wall_time == pytest.approx((TIME_US + 1000) / 1e6)
        (text,) = read.Tensors("says")
        assert (text.step, text.tensor_proto.string_val[0].decode()) == (10, "hello ü")
        (bars,) = read.Histograms("weights")
        assert bars.step == 11
        assert list(bars.histogram_value.bucket_limit) == [0.0, 2.0]
        assert list(bars.histogram_value.bucket) == [3.0, 5.0]
        await _check_pages(service)


async def _check_pages(service: Metrics) -> None:
    found: list[export_pb2.RichPoint] = []
    token = ""
    while True:
        request = export_pb2.QueryRichSeriesRequest(parent=PARENT, page_size=2, page_token=token)
        answer = await service.metrics.QueryRichSeries(request)
        found += answer.points
        token = answer.next_page_token
        if not token:
            break
    kinds = [(point.key, point.step, point.WhichOneof("value")) for point in found]
    assert kinds == [("says", 10, "text"), ("weights", 11, "histogram"), ("seen", 12, "picture")]
    assert (found[0].text, found[0].time.ToMicroseconds()) == ("hello ü", TIME_US)
    only = export_pb2.QueryRichSeriesRequest(
        parent=PARENT, keys=["weights", "none"], min_step=11, max_step=11
    )
    assert [point.key for point in (await service.metrics.QueryRichSeries(only)).points] == ["weights"]
    listed = await service.metrics.ListMetrics(metrics_pb2.ListMetricsRequest(parent=PARENT))
    kind = metrics_pb2.MetricKind.Name
    assert {each.key: kind(each.kind).removeprefix("METRIC_KIND_") for each in listed.metrics} == {
        "train/loss": "NUMBER",
        "says": "TEXT",
        "weights": "HISTOGRAM",
        "seen": "PICTURE",
    }
