"""The world of the metric stories: trainers that log, the agents' shippers, the metrics service's ingest and
compaction, and between them a bus and a database that fail."""

import asyncio
import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc

from tests.faults.sim.database import SimDatabase
from tests.faults.sim.pipe import Pipe
from tests.faults.sim.virtual import VirtualLoop
from tunesmith.api.metrics.v1 import metrics_pb2
from tunesmith.errors import TunesmithError
from tunesmith_agent import shipper as shipping
from tunesmith_agent.folder import Notes
from tunesmith_agent.shipper import Shipper
from tunesmith_metrics import store
from tunesmith_metrics.compact import Compactor
from tunesmith_metrics.events import Rank, Watermark
from tunesmith_metrics.ingest import Ingest
from tunesmith_metrics.retention import Policy, Retention
from tunesmith_metrics.tables import METADATA
from tunesmith_trainer.report import MetricSpool

T = TypeVar("T")
PROJECT = "default"
KEYS = ("train/loss", "train/tokens")
_FLUSH_SECONDS = 0.5
_SHM = Path("/dev/shm")
_BOUNDLESS = Policy()


class Attempt:
    """An attempt of a job: its run folder, what its trainer logged, and the agent that ships it."""

    def __init__(self, world: "World", job_id: str, epoch: int, first_step: int) -> None:
        self._world, self.job_id, self.epoch = world, job_id, epoch
        self._folder = world.folder / f"{job_id}-{epoch}"
        (self._folder / "spool").mkdir(parents=True)
        self._spool: MetricSpool | None = None
        self._task: asyncio.Task[None] | None = None
        self.steps: list[tuple[int, float]] = []  # step and loss of each record; its sequence number from 1
        self._next = first_step
        self.shipper: Shipper | None = None

    @property
    def who(self) -> Rank:
        """The name under which it is stored."""
        return Rank(PROJECT, self.job_id, self.epoch, 0)

    @property
    def log(self) -> Path:
        """Where its trainer writes text."""
        return self._folder / "rank-0.log"

    def write(self, num_records: int, torn: bool) -> None:
        """The trainer makes steps; `torn`: it is killed in the middle of the next record, and comes again."""
        if self._spool is None:
            self._spool = MetricSpool(self._folder / "spool")
        lines = []
        for _ in range(num_records):
            loss = self._world.rng.random()
            self._spool.write(self._next, KEYS, (loss, float(self._next)))
            self.steps.append((self._next, loss))
            lines.append(f"step {self._next}\n")
            self._next += 1
        with self.log.open("a") as file:
            file.writelines(lines)
        if torn:
            newest = max((self._folder / "spool").glob("metrics-*.bin"))
            with newest.open("ab") as file:
                file.write(b"\x40\x00\x00\x00\x12\x34")
            self._spool.close()
            self._spool = None

    def start_agent(self) -> None:
        """An agent takes the folder over, if none has it."""
        if self._task is None:
            self._task = self._world.loop.create_task(self._ship())

    def kill_agent(self) -> None:
        """The agent dies; the folder stays."""
        if self._task is not None:
            self._task.cancel()
            self._task = self.shipper = None

    async def _ship(self) -> None:
        notes = Notes(f"projects/{PROJECT}/jobs/{self.job_id}", self.epoch, "n0")
        pipe, stub = cast(Any, self._world.pipe), cast(Any, self._world)
        shipper = Shipper(notes, self._folder / "spool", self.log, 0, pipe, stub, ())
        try:
            await shipper.start()
            self.shipper = shipper
            while True:
                await shipper.tick()
                await asyncio.sleep(_FLUSH_SECONDS)
        finally:
            await shipper.stop()


class _Time:
    """Stands for the module `time` in the shipper."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.monotonic = loop.time

    def time_ns(self) -> int:
        return int(self.monotonic() * 1e9)


class World:
    """Everything, built from a seed. `run` lets virtual time pass."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        made = cast(Any, shipping)
        self._real_time, made.time = made.time, _Time(self.loop)
        shared = _SHM if _SHM.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="tunesmith-story-", dir=shared))
        self.db = SimDatabase(METADATA, self.rng)
        self.pipe = Pipe(self.rng, self.loop)
        self.attempts: list[Attempt] = []
        self._keeper = Retention(cast(Any, self.db), _BOUNDLESS)
        self._ingest: Ingest | None = None
        self._compactions: set[asyncio.Task[None]] = set()
        self.do(self.start_service)

    async def start_service(self) -> None:
        """The metrics service starts, if it is down."""
        if self._ingest is None:
            self._ingest = Ingest(cast(Any, self.db), cast(Any, self.pipe), self._keeper)
            await self._ingest.start()

    async def kill_service(self) -> None:
        """The metrics service dies at once; the database stays."""
        if self._ingest is not None:
            for durable in self.pipe.durables.values():
                await durable.stop()
            self._ingest = None
            for task in self._compactions:
                task.cancel()

    async def fill(self, full: bool) -> None:
        """The project has no room for more points, or has room again."""
        self._keeper.default = replace(_BOUNDLESS, max_points=1) if full else _BOUNDLESS
        with suppress(TunesmithError):
            await self._keeper.refresh()

    def compact(self) -> None:
        """A pass of the compactor begins, beside all else."""
        if self._ingest is not None:
            task = self.loop.create_task(self._compact())
            self._compactions.add(task)
            task.add_done_callback(self._compactions.discard)

    async def _compact(self) -> None:
        with suppress(TunesmithError):  # the next pass looks again
            await Compactor(cast(Any, self.db)).once()

    async def GetWatermark(  # the world is the agents' stub
        self, request: metrics_pb2.GetWatermarkRequest, **_: Any
    ) -> metrics_pb2.GetWatermarkResponse:
        """Answers an agent, or does not."""
        await asyncio.sleep(self.rng.uniform(0, 0.05))
        if self._ingest is None or self.rng.random() < self.pipe.trouble:
            empty = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, empty, empty)
        who = Rank(PROJECT, request.job.rpartition("/")[2], request.epoch, request.rank)
        mark = self.mark(who)
        return metrics_pb2.GetWatermarkResponse(metrics_seq=mark.metrics_seq, log_offset=mark.log_offset)

    def mark(self, who: Rank) -> Watermark:
        """How far an attempt is stored."""
        return self.db.look(lambda session: store.watermark(session, who))

    def counted(self, job_id: str) -> dict[str, int]:
        """How many points of each key the summaries of a job tell of."""
        rows = self.db.look(lambda session: store.fresh_summaries(session, job_id))
        return {row["key"]: row["num_points"] for row in rows}

    def begin(self, job_id: str, back: int) -> Attempt:
        """A new attempt of a job begins, some steps before the end of the one before."""
        mine = [attempt for attempt in self.attempts if attempt.job_id == job_id]
        reached = mine[-1].steps[-1][0] if mine and mine[-1].steps else 0
        attempt = Attempt(self, job_id, len(mine) + 1, max(1, reached - back))
        self.attempts.append(attempt)
        attempt.start_agent()
        return attempt

    def do(self, work: Callable[[], Awaitable[T]]) -> T:
        """Runs something to its end in virtual time."""
        done: T = self.loop.run_until_complete(cast(Any, work()))
        return done

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        self.do(lambda: asyncio.sleep(seconds))

    def close(self) -> None:
        """Ends all tasks and frees what was used."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.run(0.01)
        self.loop.close()
        asyncio.set_event_loop(None)
        self.db.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        cast(Any, shipping).time = self._real_time
