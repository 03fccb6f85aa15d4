"""Figures of the jobs service for Prometheus that come from the database: jobs and nodes by state."""

import asyncio

from sqlalchemy import func, select
from sqlalchemy.orm import Mapped, Session
from sqlmodel import col

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_jobs.tables import JobRow, NodeRow
from tunesmith_kit.db import Database
from tunesmith_kit.telemetry import METRICS

_SECONDS = 5.0


class Figures:
    """Sets the gauges every five seconds; all replicas say the same."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def run(self) -> None:
        """Measures until it is cancelled."""
        while True:
            await self.measure()
            await asyncio.sleep(_SECONDS)

    async def measure(self) -> None:
        """Counts once."""
        jobs, nodes = await self._db.read(
            lambda s: (_count(s, col(JobRow.state)), _count(s, col(NodeRow.state)))
        )
        for name, job_state in state_pb2.JobState.items():
            if job_state:
                METRICS.jobs.labels(state=name.removeprefix("JOB_STATE_").lower()).set(jobs.get(job_state, 0))
        for name, node_state in nodes_pb2.NodeState.items():
            if node_state:
                METRICS.nodes.labels(state=name.removeprefix("NODE_STATE_").lower()).set(
                    nodes.get(node_state, 0)
                )


def _count(session: Session, column: Mapped[int]) -> dict[int, int]:
    query = select(column, func.count()).group_by(column)
    return {state: number for state, number in session.execute(query).all()}
