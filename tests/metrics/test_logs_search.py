"""Searching logs: by level, pattern, rank, time and step; a bound on the work of a request; error lines."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from tests.metrics.support import JOB, PARENT, TIME_US, Metrics, chunk, running_metrics, send
from tests.support.postgres import running
from tests.support.wait import until_async
from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2
from tunesmith_metrics import logs

INFO, WARNING, ERROR = (
    events_pb2.LOG_LEVEL_INFO,
    events_pb2.LOG_LEVEL_WARNING,
    events_pb2.LOG_LEVEL_ERROR,
)
SECOND = 1_000_000


async def query(service: Metrics, **fields: object) -> metrics_pb2.QueryLogsResponse:
    return await service.logs.QueryLogs(metrics_pb2.QueryLogsRequest(parent=PARENT, **fields))  # type: ignore[arg-type]


async def texts(service: Metrics, **fields: object) -> list[str]:
    return [line.text for line in (await query(service, **fields)).lines]


async def every(service: Metrics, **fields: object) -> tuple[list[str], int]:
    """All lines over all pages, and how many pages there were."""
    found, token, pages = [], "", 0
    while True:
        page = await query(service, page_token=token, **fields)
        found += [line.text for line in page.lines]
        token, pages = page.next_page_token, pages + 1
        if not token:
            return found, pages


async def stored(service: Metrics, *chunks: events_pb2.LogChunk) -> None:
    """Sends chunks and waits until the end of each rank's last one is stored."""
    for message in chunks:
        await send(service.bus, message)
    ends = {(each.epoch, each.rank): each.offset + each.num_bytes for each in chunks}

    async def all_there() -> bool:
        marks = [(await service.watermark(*rank)).log_offset == end for rank, end in ends.items()]
        return all(marks)

    await until_async(all_there, "the logs")


@asynccontextmanager
async def two_ranks(folder: Path, **settings: object) -> AsyncIterator[Metrics]:
    """Two ranks that write in turn, a second apart."""
    async with running_metrics(folder, None, **settings) as service:
        first = chunk(0, ["Begin", "step 1 Loss 4.5"], levels=[INFO, INFO], steps=[0, 1], time_us=TIME_US)
        second = chunk(
            first.num_bytes, ["a.py: odd", "ValueError: 17"], levels=[WARNING, ERROR], steps=[5, 5],
            time_us=TIME_US + 2 * SECOND,
        )  # fmt: skip
        other = chunk(
            0, ["begin too", "step 2 loss 3"], rank=1, levels=[INFO, INFO], steps=[0, 2],
            time_us=TIME_US + SECOND,
        )  # fmt: skip
        await stored(service, first, other, second)
        yield service


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.distributed)])
async def test_lines_are_found_by_what_they_say_and_are(tmp_path: Path, database: str) -> None:
    if database == "postgresql":
        with running() as server:
            await _search(tmp_path, database_url=server.url)
    else:
        await _search(tmp_path)


async def _search(folder: Path, **settings: object) -> None:
    async with two_ranks(folder, **settings) as service:
        whole = ["Begin", "step 1 Loss 4.5", "begin too", "step 2 loss 3", "a.py: odd", "ValueError: 17"]
        assert await texts(service) == whole
        assert await texts(service, min_level=WARNING) == whole[4:]
        assert await texts(service, min_level=ERROR) == whole[5:]
        assert await texts(service, ranks=[1]) == whole[2:4]
        assert await texts(service, contains="begin") == ["begin too"]
        assert await texts(service, contains="BEGIN", ignore_case=True) == ["Begin", "begin too"]
        assert await texts(service, pattern=r"^step \d loss") == ["step 2 loss 3"]
        assert await texts(service, pattern=r"^STEP \d loss", ignore_case=True) == [whole[1], whole[3]]
        assert await texts(service, pattern=r"\d$", contains="step") == [whole[1], whole[3]]
        assert await texts(service, pattern=r"\Astep 2") == ["step 2 loss 3"]
        assert await texts(service, pattern=r"too\z") == ["begin too"]
        assert await texts(service, pattern="n\nb") == []
        assert await texts(service, min_step=2) == whole[3:]
        start, end = TIME_US + SECOND, TIME_US + 2 * SECOND
        assert await texts(service, start_time=stamp(start)) == whole[2:]
        assert await texts(service, end_time=stamp(end)) == whole[:4]
        assert await texts(service, start_time=stamp(start), end_time=stamp(end)) == whole[2:4]
        line = (await query(service, tail=True, page_size=1)).lines[0]
        assert (line.level, line.step, line.text) == (ERROR, 5, "ValueError: 17")
        got, pages = await every(service, page_size=1, min_level=INFO)
        assert (got, pages) == (whole, 6)


def stamp(time_us: int) -> dict[str, int]:
    return {"seconds": time_us // SECOND, "nanos": time_us % SECOND * 1000}


async def test_a_tail_goes_back_page_by_page(tmp_path: Path) -> None:
    async with running_metrics(tmp_path) as service:
        lines = [f"line {index}" for index in range(50)]
        parts, offset = [], 0
        for start in range(0, 50, 7):
            parts.append(chunk(offset, lines[start : start + 7], time_us=TIME_US + start))
            offset += parts[-1].num_bytes
        await stored(service, *parts)
        found: list[str] = []
        token = ""
        while len(found) < 50:
            page = await query(service, tail=True, page_size=8, page_token=token)
            found = [line.text for line in page.lines] + found
            token = page.next_page_token
        assert found == lines
        assert token == ""


async def test_a_search_for_what_is_nowhere_ends_page_by_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_MAX_SCAN_BYTES", 3000)
    async with running_metrics(tmp_path) as service:
        parts, offset = [], 0
        for number in range(12):
            lines = [f"{number} " + "x" * 990, "needle" if number == 9 else "hay"]
            parts.append(chunk(offset, lines, time_us=TIME_US + number))
            offset += parts[-1].num_bytes
        await stored(service, *parts)
        found, pages = await every(service, contains="nowhere")
        assert (found, pages > 2) == ([], True)
        found, pages = await every(service, pattern="^needle$")
        assert found == ["needle"]
        assert pages > 2
        assert (await every(service, contains="needle", tail=True))[0] == ["needle"]
        assert len((await every(service))[0]) == 24


async def test_a_chunk_that_fills_a_gap_stands_where_its_lines_belong(tmp_path: Path) -> None:
    lines = ["one", "two", "three"]
    whole = chunk(0, lines)
    parts = [
        chunk(whole.line_offsets[index], [lines[index]], time_us=TIME_US + late)
        for index, late in ((2, 10), (0, 0), (1, 99))  # the second one was lost, and is read again later
    ]
    async with running_metrics(tmp_path) as service:
        for part in parts:
            await send(service.bus, part)

        async def all_there() -> bool:
            return (await service.watermark()).log_offset == whole.num_bytes

        await until_async(all_there, "the log")
        assert await texts(service) == lines
        assert await texts(service, tail=True, page_size=2) == lines[1:]
        assert (await every(service, page_size=1))[0] == lines


async def test_wrong_patterns_and_times_are_said(tmp_path: Path) -> None:
    async with two_ranks(tmp_path) as service:
        for field, fields in (
            ("pattern", {"pattern": "a(b"}),
            ("pattern", {"pattern": "(a{1000}){1000}"}),
            ("end_time", {"start_time": stamp(TIME_US), "end_time": stamp(TIME_US - 1)}),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await query(service, **fields)
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert field in str(error.value.trailing_metadata())


async def test_a_filtered_tail_brings_what_is_stored_and_what_comes(tmp_path: Path) -> None:
    async with two_ranks(tmp_path) as service:
        request = metrics_pb2.TailLogsRequest(
            parent=PARENT, min_level=WARNING, pattern="Error|odd|late", ranks=[0]
        )
        got: list[str] = []
        async for answer in service.logs.TailLogs(request):
            got += [line.text for line in answer.lines]
            if len(got) == 2:
                end = (await service.watermark()).log_offset
                await send(
                    service.bus, chunk(end, ["late, no matter", "late!"], levels=[INFO, ERROR], steps=[6, 6])
                )
            if len(got) == 3:
                break
        assert got == ["a.py: odd", "ValueError: 17", "late!"]


async def test_a_tail_does_not_wait_where_nothing_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith_metrics import logservice

    monkeypatch.setattr(logservice, "_WATCH_BYTES", 100)
    async with running_metrics(tmp_path) as service:
        offset = 0
        for number in range(30):  # each a revision of its own
            part = chunk(offset, ["needle" if number == 29 else "x" * 200])
            await stored(service, part)
            offset += part.num_bytes
        reads = 0
        request = metrics_pb2.TailLogsRequest(parent=PARENT, contains="needle")
        async for answer in service.logs.TailLogs(request):
            reads += 1
            if answer.lines:
                break
        assert reads == 1, "the first answer has it, however many pages lie before"


async def test_error_lines_are_counted_once_by_text(tmp_path: Path) -> None:
    lines = [
        "step 1 fine",
        "Traceback (most recent call last):",
        '  File "x.py", line 5',
        "ValueError: 17 is odd",
        "[rank0]: ValueError: 23 is odd",
        "CRITICAL: no room",
    ]
    levels = [INFO, ERROR, ERROR, ERROR, ERROR, events_pb2.LOG_LEVEL_CRITICAL]
    async with running_metrics(tmp_path) as service:
        first = chunk(0, lines, levels=levels, steps=[1, 2, 2, 2, 3, 4])
        await stored(service, first)
        await send(service.bus, first, "again")
        again = chunk(
            first.num_bytes, ["ValueError: 5 is odd"], levels=[ERROR], steps=[9], time_us=TIME_US + SECOND
        )
        await stored(service, again)
        request = metrics_pb2.ListErrorLinesRequest(parent=PARENT)
        found = await service.logs.ListErrorLines(request)
        assert [(each.line.text, each.count, each.line.step) for each in found.lines] == [
            ("ValueError: 5 is odd", 3, 9),
            ("CRITICAL: no room", 1, 4),
        ]
        assert found.total_size == 4
        assert found.lines[0].first_time.ToMicroseconds() == TIME_US
        assert found.lines[0].line.time.ToMicroseconds() == TIME_US + SECOND
        request.page_size = 1
        assert len((await service.logs.ListErrorLines(request)).lines) == 1
        other = metrics_pb2.ListErrorLinesRequest(parent=f"projects/other/jobs/{JOB}")
        assert not (await service.logs.ListErrorLines(other)).lines


async def test_the_texts_of_a_storm_of_errors_are_bounded(tmp_path: Path) -> None:
    def word(number: int) -> str:
        return "".join(chr(97 + int(digit)) for digit in str(number))

    async with running_metrics(tmp_path) as service:
        lines = [f"Error: {word(number)}" for number in range(700)]
        parts, offset = [], 0
        for start in range(0, 700, 100):
            part = chunk(
                offset,
                lines[start : start + 100],
                levels=[ERROR] * 100,
                steps=[0] * 100,
                time_us=TIME_US + start,
            )
            parts.append(part)
            offset += part.num_bytes
        await stored(service, *parts)
        found = await service.logs.ListErrorLines(
            metrics_pb2.ListErrorLinesRequest(parent=PARENT, page_size=200)
        )
        assert found.total_size == 700
        assert {each.line.text for each in found.lines} == set(lines[-200:])
