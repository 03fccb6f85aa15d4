"""The log of a job in the browser: long, of two ranks, jumped into, searched and read in both directions."""

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.test_page import FOLDER, Onlooker, browser
from tests.support.logs import agents_bus, write_log
from tests.support.platform import Platform
from tests.support.processes import wait_for

_NUM_LINES, _NEEDLE, _STEP = 10_000, 137, 500


def _line(rank: int) -> Callable[[int], tuple[str, str]]:
    def of(number: int) -> tuple[str, str]:
        if rank == 0 and number == _NEEDLE:
            return "ERROR", f"r0 {number} a needle \x1b[31mred\x1b[0m <b>\N{RIGHT-TO-LEFT OVERRIDE}txt"
        return "INFO", f"r{rank} {number} loss " + "and so on " * (number % 23)

    return of


@pytest.mark.browser
def test_a_long_log_is_read_from_any_place(
    npm: Callable[..., None], platform: Platform, tmp_path: Path
) -> None:
    npm(FOLDER)
    chromium = browser()
    with platform.client() as client:
        # Without a base model it is refused at once: only its log matters here.
        job = client.jobs.submit(
            {
                "experiment": "log",
                "base_model": "none",
                "dataset": "none",
                "resources": {"processes_per_node": 2},
            }
        )

        async def write() -> None:
            bus = await agents_bus(platform)
            for rank in (0, 1):
                await write_log(bus, job.id, rank, _NUM_LINES, _line(rank))
            await bus.close()

        asyncio.run(write())

        def stored() -> bool:
            ends = (list(job.logs(tail=1, ranks=[rank])) for rank in (0, 1))
            return all(end and end[0].text.split()[1] == str(_NUM_LINES - 1) for end in ends)

        wait_for(stored, 60, "the log is stored")
        command = ["node", "log.mjs", platform.http, platform.token, chromium, str(tmp_path), job.id]
        with subprocess.Popen(
            [*command, str(_STEP)], cwd=FOLDER, stdout=subprocess.PIPE, text=True
        ) as process:
            page = Onlooker(process)
            end = page.until("end")
            assert end["last"].split()[1] == str(_NUM_LINES - 1)
            assert end["held"] < 1000
            jumped = page.until("jumped")
            assert jumped["step"] == str(_STEP)
            assert f"step={_STEP}" in jumped["url"]
            assert 0 <= jumped["top"] < 40, "the line asked for is the first in sight"
            one = page.until("one rank")
            assert "rank=1" in one["url"]
            assert one["ranks"] == ["r1"]
            read = page.until("read")
            assert all(b - a == 1 for a, b in zip(read["numbers"], read["numbers"][1:], strict=False))
            # Pages came and went at both ends, and what was in sight stayed where it was.
            assert read["least"] < 10 * _STEP - 1300
            assert read["most"] > 10 * _STEP + 1300
            assert read["held"] < 2600
            assert read["moved"] <= 1
            found = page.until("found")
            assert found["lines"] == ["0r0 137 a needle red <b>⟨U+202E⟩txt"]
            assert {"log=needle", "level=error"} <= set(found["query"])
            again = page.until("reloaded")
            assert again == found | {"saw": "reloaded"}
            phone = page.until("telephone")
            assert phone["wide"] <= 0
            page.until("done")
            assert process.wait(30) == 0
