"""Histograms, texts and pictures from the trainer's spool over the agent to the answer."""

import hashlib
from pathlib import Path

import pytest

from tests.metrics.support import JOB, PARENT, Metrics, running_metrics, send
from tests.support.wait import until_async
from tunesmith.api.metrics.v1 import export_pb2
from tunesmith_agent.folder import Notes
from tunesmith_agent.shipper import Shipper
from tunesmith_agent.spool import SpoolReader, pack
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.holds import Holds
from tunesmith_trainer.report import MetricSpool

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


async def rich(service: Metrics) -> list[export_pb2.RichPoint]:
    answer = await service.metrics.QueryRichSeries(export_pb2.QueryRichSeriesRequest(parent=PARENT))
    return list(answer.points)


async def test_what_the_trainer_logs_arrives_with_numbers_in_between(tmp_path: Path) -> None:
    run = tmp_path / "run"
    spool = MetricSpool(run / "spool")
    spool.write(1, ("train/loss",), (1.5,))
    spool.histogram(1, "grads", [0.0, 0.5, 2.0], [3, 1])
    spool.text(2, "sample/0", "What? … ünï")
    spool.picture(2, "view", PNG, "image/png", size=(4, 3), caption="a view")
    spool.write(2, ("train/loss",), (1.25,))
    spool.close()
    blobs = BlobStore.open((tmp_path / "blobs").as_uri())
    holds = Holds.open((tmp_path / "blobs").as_uri())
    async with running_metrics(tmp_path) as service:
        notes = Notes(f"projects/default/jobs/{JOB}", 1, "n1")
        shipper = Shipper(
            notes,
            run / "spool",
            tmp_path / "log",
            0,
            service.bus,
            service.metrics,
            (),
            blobs=blobs,
            holds=holds,
        )
        await shipper.start()
        assert await shipper.drained(90)
        await shipper.stop()
        assert list((await service.loss()).values) == [1.5, 1.25]
        histogram, text, picture = await rich(service)
        assert (histogram.key, histogram.step) == ("grads", 1)
        assert (list(histogram.histogram.edges), list(histogram.histogram.counts)) == (
            [0.0, 0.5, 2.0],
            [3, 1],
        )
        assert (text.key, text.text) == ("sample/0", "What? … ünï")
        assert (picture.picture.media_type, picture.picture.width, picture.picture.caption) == (
            "image/png",
            4,
            "a view",
        )
        assert picture.picture.digest == hashlib.sha256(PNG).hexdigest()
        assert blobs.read_bytes(picture.picture.digest) == PNG
        assert holds.held() == {picture.picture.digest}, "or the registry would count it as garbage"
        holds.release(JOB)
        assert holds.held() == set()


async def test_after_a_resume_the_later_attempt_counts_whatever_comes_last(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        for epoch, words in ((2, "second"), (1, "first")):
            spool = MetricSpool(tmp_path / f"run-{epoch}" / "spool")
            spool.text(5, "sample/0", words)
            spool.close()
            items = SpoolReader(tmp_path / f"run-{epoch}" / "spool").read(0)
            (message,) = pack(JOB, epoch, 0, items)
            await send(service.bus, message)

            async def stored(epoch: int = epoch) -> bool:
                return (await service.watermark(epoch)).metrics_seq == 1

            await until_async(stored, "the text")
        assert [point.text for point in await rich(service)] == ["second"]


def test_a_value_that_cannot_be_is_refused_where_it_is_logged(tmp_path: Path) -> None:
    spool = MetricSpool(tmp_path / "spool")
    for key in ("", "k" * 10_000, "line\nbreak"):
        with pytest.raises(ValueError, match="a metric's key has 1 to 256 bytes"):
            spool.write(1, (key,), (1.0,))
    with pytest.raises(ValueError, match="ascend"):
        spool.histogram(1, "h", [1.0, 0.0], [1])
    with pytest.raises(ValueError, match="image/png"):
        spool.picture(1, "p", b"GIF89a", "image/gif")
    spool.text(1, "t", "x" * 100_000)
    spool.close()
    (item,) = SpoolReader(tmp_path / "spool").read(0)
    (message,) = pack("job", 1, 0, [item])
    assert message.rich[0].text.endswith("x…")
    assert len(message.rich[0].text.encode()) <= 64 * 1024
