"""Logs: every line once and in order, found by text, followed as they come."""

import asyncio
from pathlib import Path

from tests.metrics.support import PARENT, Metrics, chunk, running_metrics, send
from tests.support.wait import until_async
from tunesmith.api.metrics.v1 import metrics_pb2


def _lines(count: int) -> list[str]:
    return [f"line {index} {'error' if index % 10 == 0 else 'fine'}" for index in range(count)]


async def _send_all(service: Metrics, lines: list[str], size: int = 7) -> None:
    offset = 0
    for start in range(0, len(lines), size):
        message = chunk(offset, lines[start : start + size])
        await send(service.bus, message)
        offset += message.num_bytes

    async def stored() -> bool:
        return (await service.watermark()).log_offset == offset

    await until_async(stored, "the log")


async def _query(service: Metrics, **fields: object) -> metrics_pb2.QueryLogsResponse:
    return await service.logs.QueryLogs(metrics_pb2.QueryLogsRequest(parent=PARENT, **fields))  # type: ignore[arg-type]


async def test_pages_bring_every_line_once_in_order(tmp_path: Path) -> None:
    lines = _lines(100)
    async with running_metrics(tmp_path) as service:
        await _send_all(service, lines)
        got: list[str] = []
        token = ""
        while True:
            page = await _query(service, page_size=9, page_token=token)
            got += [line.text for line in page.lines]
            token = page.next_page_token
            if not token:
                break
        assert got == lines


async def test_lines_are_found_by_text_and_from_the_end(tmp_path: Path) -> None:
    lines = _lines(100)
    async with running_metrics(tmp_path) as service:
        await _send_all(service, lines)
        errors = [line for line in lines if "error" in line]
        found = await _query(service, contains="error", page_size=4)
        assert [line.text for line in found.lines] == errors[:4]
        rest = await _query(service, contains="error", page_size=100, page_token=found.next_page_token)
        assert [line.text for line in rest.lines] == errors[4:]
        last = await _query(service, tail=True, page_size=5)
        assert [line.text for line in last.lines] == lines[-5:]
        assert not (await _query(service, epoch=2)).lines


async def test_from_any_page_lines_are_read_in_both_directions(tmp_path: Path) -> None:
    lines = _lines(100)

    def texts(page: metrics_pb2.QueryLogsResponse) -> list[str]:
        return [line.text for line in page.lines]

    async with running_metrics(tmp_path) as service:
        await _send_all(service, lines)
        second = await _query(
            service, page_size=20, page_token=(await _query(service, page_size=20)).next_page_token
        )
        assert texts(second) == lines[20:40]
        before = await _query(service, page_size=15, page_token=second.previous_page_token)
        assert texts(before) == lines[5:20]
        again = await _query(service, page_size=10, page_token=before.previous_page_token)
        assert texts(again) == lines[20:30]
        assert texts(await _query(service, page_size=10, page_token=before.next_page_token)) == lines[:5]
        # A token is a place: what is asked for there may be less, and nothing stands after the end.
        errors = await _query(service, contains="error", page_token=second.previous_page_token)
        assert texts(errors) == [lines[0], lines[10]]
        end = await _query(service, tail=True, page_size=5)
        beyond = await _query(service, page_token=end.previous_page_token)
        assert (texts(beyond), beyond.next_page_token, beyond.previous_page_token) == ([], "", "")


async def test_chunks_that_come_again_cut_differently_and_late_give_each_line_once(tmp_path: Path) -> None:
    lines = _lines(60)
    whole = chunk(0, lines)

    def part(low: int, high: int, time_us: int) -> object:
        return chunk(whole.line_offsets[low], lines[low:high], time_us=time_us)

    async with running_metrics(tmp_path) as service:
        # 20..40 is there first; 10..30 and 0..60 come later, read again by an agent that restarted.
        for index, piece in enumerate((part(20, 40, 100), part(10, 30, 200), part(0, 60, 300))):
            await send(service.bus, piece, f"piece-{index}")  # type: ignore[arg-type]

        async def stored() -> bool:
            return (await service.watermark()).log_offset == whole.num_bytes

        await until_async(stored, "the log")
        assert [line.text for line in (await _query(service)).lines] == lines


async def test_a_tail_follows_and_goes_on_from_a_revision(tmp_path: Path) -> None:
    lines = _lines(40)
    async with running_metrics(tmp_path) as service:
        got: list[str] = []
        revision = 0

        async def follow(from_revision: int, enough: int) -> None:
            nonlocal revision
            request = metrics_pb2.TailLogsRequest(parent=PARENT, from_revision=from_revision)
            async for response in service.logs.TailLogs(request):
                got.extend(line.text for line in response.lines)
                revision = response.revision
                if len(got) >= enough:
                    return

        first = asyncio.create_task(follow(0, 20))
        await _send_all(service, lines[:20])
        await asyncio.wait_for(first, 90)
        start = chunk(0, lines[:20]).num_bytes
        await send(service.bus, chunk(start, lines[20:]))
        await asyncio.wait_for(follow(revision, 40), 90)
        assert got == lines


async def test_long_lines_are_cut_with_a_mark(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        await _send_all(service, ["x" * 20_000, "short"])
        found = (await _query(service)).lines
        assert found[0].text.endswith("… (cut)")
        assert len(found[0].text) < 17_000
        assert found[1].text == "short"


async def test_attempts_stay_apart(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        await send(service.bus, chunk(0, ["first attempt"], epoch=1))
        await send(service.bus, chunk(0, ["second attempt"], epoch=2))

        async def both() -> bool:
            return len((await _query(service)).lines) == 2

        await until_async(both, "both lines")
        assert [line.text for line in (await _query(service, epoch=2)).lines] == ["second attempt"]
        assert [line.epoch for line in (await _query(service)).lines] == [1, 2]
