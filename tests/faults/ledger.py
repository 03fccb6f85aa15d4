"""Accepts jobs into a real jobs database for ever, and prints the id of each once it was answered.

`python -m tests.faults.ledger FOLDER`: what the power is cut from.
"""

import asyncio
import sys
from pathlib import Path

from tunesmith.api.jobs.v1 import jobs_pb2
from tunesmith_jobs.store import Caller, JobStore
from tunesmith_jobs.tables import METADATA
from tunesmith_kit import migrate
from tunesmith_kit.clock import SystemClock
from tunesmith_kit.db import Database

_AT_ONCE = 8


async def run(folder: Path) -> None:
    """Keeps several calls under way, so that commits gather as they do in service."""
    url = f"sqlite:///{folder / 'jobs.db'}"
    await asyncio.to_thread(migrate.upgrade, url, "jobs", METADATA)
    store = JobStore(Database(url, "jobs"), SystemClock())

    async def accept() -> None:
        while True:
            request = jobs_pb2.CreateJobRequest(parent="projects/default")
            request.spec.base_model = request.spec.dataset = "any"
            job = await store.create(request, Caller("ledger"))
            sys.stdout.write(job.job_id + "\n")
            sys.stdout.flush()

    await asyncio.gather(*(accept() for _ in range(_AT_ONCE)))


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1])))
