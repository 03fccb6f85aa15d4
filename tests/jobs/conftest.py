"""The jobs service alone, with a real bus and a real database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.jobs.hands import Jobs
from tests.support.service import service


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Jobs]:
    async with service("jobs", tmp_path) as harness:
        yield Jobs(harness)
