"""Ships a run's metric records and log to the metrics service, and trims the spool once they are stored.

Published is not stored: only the watermark that the metrics service reports after its commit counts. When it
stands still (a wiped bus, a lost message), the rest is sent again; the store knows what it has.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2, metrics_pb2_grpc
from tunesmith.errors import TunesmithError
from tunesmith_agent.folder import Notes
from tunesmith_agent.logs import LogTail
from tunesmith_agent.redaction import Redactor
from tunesmith_agent.spool import Record, SpoolReader, pack
from tunesmith_kit import subjects
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.bus import Bus
from tunesmith_kit.connection import Message, Subscription
from tunesmith_kit.holds import Holds
from tunesmith_kit.subjects import NODE_RANK

log = logging.getLogger(__name__)
_MOST_RECORDS = 20_000  # read at once
_MOST_AHEAD = 100_000  # records sent and not yet stored: more would only wait elsewhere
# Nobody watches: a message costs as much as fifty values, and thousands of runs send them.
FLUSH_SECONDS = 0.5
_VIEWED_FLUSH_SECONDS = 0.05
_VIEWED_SECONDS = 10.0  # who watches says so again within them
_STILL_SECONDS = 5.0  # without progress of the watermark before we ask, and send again
_LONGEST_STILL_SECONDS = 60.0  # of a store that takes nothing, for the project is full or it is away


class Shipper:
    """Sends what one rank of a run wrote; rank 0's also the node's own series of the run."""

    def __init__(
        self,
        notes: Notes,
        spool: Path,
        log_path: Path,
        rank: int,
        bus: Bus,
        metrics: "metrics_pb2_grpc.MetricsServiceAsyncStub",
        metadata: tuple[tuple[str, str], ...],
        redactor: Redactor | None = None,
        step: Callable[[], int] = lambda: 0,
        blobs: BlobStore | None = None,
        holds: Holds | None = None,
    ) -> None:
        self._notes, self._bus, self._metrics, self._metadata = notes, bus, metrics, metadata
        self._rank = rank
        self._reader = SpoolReader(spool)
        self._log = LogTail(log_path, notes.job_id, notes.epoch, rank, redactor, step)
        self._media, self._blobs, self._holds = spool.parent / "media", blobs, holds
        self._sent_seq = self._stored_seq = 0
        self._stored_offset = 0
        self._round = 0
        self._moved = time.monotonic()
        self._patience = _STILL_SECONDS
        self._flushed = self._viewed = float("-inf")
        self._node_seq: int | None = None
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Begins to hear watermarks and finds out what is stored already."""
        project, job_id = self._notes.project, self._notes.job_id
        self._subscriptions = [
            await self._bus.subscribe(subjects.any_watermark(project, job_id), self._hear),
            await self._bus.subscribe(subjects.viewed(project, job_id), self._hear_viewer),
        ]
        await self._ask()
        self._sent_seq, self._log.offset = self._stored_seq, self._stored_offset

    async def stop(self) -> None:
        """Stops hearing watermarks and viewers."""
        for subscription in self._subscriptions:
            await subscription.close()

    async def tick(self, ended: bool = False) -> bool:
        """Sends what came since the last call, twice a second, or twenty times while somebody watches;
        tells whether all that lies in the folder was looked at.

        While the bus is away everything stays in the folder, unread; so it does while much is not stored yet.
        """
        if not self._bus.connected or not (ended or self._due()):
            return False
        self._flushed = time.monotonic()
        if self._behind() and time.monotonic() - self._moved > self._patience:
            await self._send_again()
        complete = await self._send_records()
        while (chunk := self._log.read(ended)) is not None:
            subject = subjects.logs(self._notes.project, chunk.job_id, chunk.epoch, chunk.rank)
            msg_id = f"{chunk.job_id}:{chunk.epoch}:{chunk.rank}:{chunk.offset}"
            await self._publish(subject, chunk.SerializeToString(), msg_id)
        self._reader.trim(self._stored_seq)
        return complete

    def _due(self) -> bool:
        now = time.monotonic()
        viewed = now - self._viewed < _VIEWED_SECONDS
        return now - self._flushed >= (_VIEWED_FLUSH_SECONDS if viewed else FLUSH_SECONDS)

    async def _send_records(self) -> bool:
        """Sends metric records; tells whether none are left."""
        if self._sent_seq - self._stored_seq > _MOST_AHEAD:
            return False
        items = await asyncio.to_thread(self._reader.read, self._sent_seq, _MOST_RECORDS)
        first = self._sent_seq
        for batch in pack(self._notes.job_id, self._notes.epoch, self._rank, items):
            if batch.rich and not await asyncio.to_thread(self._upload, batch):
                self._reader.rewind()  # from this batch on it is tried again
                return False
            await self._send(batch)
            self._sent_seq = batch.first_seq + batch.num_records - 1
        return self._sent_seq - first < _MOST_RECORDS

    def _upload(self, batch: events_pb2.MetricBatch) -> bool:
        """Puts the pictures of a batch into the store of blobs; False when that cannot be done now."""
        for value in batch.rich:
            digest = value.picture.digest
            path = self._media / digest
            if not digest or self._blobs is None or not path.is_file():
                continue  # a trainer that promised a file and wrote none keeps nobody else waiting
            try:
                if self._holds is not None:  # the registry knows nothing of pictures
                    self._holds.hold(self._notes.job_id, digest)
                self._blobs.put_file(path)
            except (TunesmithError, OSError) as error:
                log.warning("a picture cannot be stored now", extra={"digest": digest, "problem": str(error)})
                return False
        return True

    async def send_node_series(self, step: int, values: dict[str, float]) -> None:
        """Sends one sample of the node beside the run's curves; `step` is seconds since the run began."""
        if self._node_seq is None or not self._bus.connected:
            return
        self._node_seq += 1
        keys, numbers = tuple(values), tuple(values.values())
        record = Record(self._node_seq, step, time.time_ns() // 1000, keys, numbers)
        for batch in pack(self._notes.job_id, self._notes.epoch, NODE_RANK, [record]):
            await self._send(batch)

    async def drained(self, seconds: float) -> bool:
        """Waits until everything is stored, at most so long; an outage must not hold the run's end back."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            # Nothing sent and nothing stored is no proof: what lies in the folder may not have been read yet.
            if await self.tick(ended=True) and not self._behind():
                return True
            await asyncio.sleep(0.05)
        return False

    def backlog_bytes(self) -> int:
        """Returns the bytes not yet known to be stored."""
        return self._reader.backlog_bytes()

    def _behind(self) -> bool:
        return self._sent_seq > self._stored_seq or self._log.offset > self._stored_offset

    async def _send(self, batch: events_pb2.MetricBatch) -> None:
        subject = subjects.metrics(self._notes.project, batch.job_id, batch.epoch, batch.rank)
        msg_id = f"{batch.job_id}:{batch.epoch}:{batch.rank}:{batch.first_seq}"
        await self._publish(subject, batch.SerializeToString(), msg_id)

    async def _publish(self, subject: str, payload: bytes, msg_id: str) -> None:
        # The future may fail when the bus is away for long: the watermark stands still, and we send again.
        # What is sent again gets an id of its own: a stream drops a known one even if its message is lost.
        fresh = f"{msg_id}:{self._round}" if self._round else msg_id
        future = await self._bus.publish_soon(subject, payload, fresh, deadline=60)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _hear_viewer(self, message: Message) -> None:
        self._viewed = time.monotonic()

    async def _hear(self, message: Message) -> None:
        self._take(events_pb2.WatermarkAdvanced.FromString(message.payload))

    def _take(self, mark: events_pb2.WatermarkAdvanced) -> None:
        if mark.epoch != self._notes.epoch or mark.rank != self._rank:
            return
        if mark.metrics_seq > self._stored_seq or mark.log_offset > self._stored_offset:
            self._moved = time.monotonic()
            self._patience = _STILL_SECONDS
        self._stored_seq = max(self._stored_seq, mark.metrics_seq)
        self._stored_offset = max(self._stored_offset, mark.log_offset)

    async def _ask(self) -> None:
        """Asks the store how far it is; silence means no news."""
        for rank in (self._rank, NODE_RANK) if self._rank == 0 else (self._rank,):
            request = metrics_pb2.GetWatermarkRequest(
                job=f"projects/{self._notes.project}/jobs/{self._notes.job_id}",
                epoch=self._notes.epoch,
                rank=rank,
            )
            try:
                answer = await self._metrics.GetWatermark(request, timeout=5, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                log.info("the metrics service does not answer", extra={"code": error.code().name})
                return
            if rank == NODE_RANK:
                self._node_seq = max(self._node_seq or 0, answer.metrics_seq)
                continue
            mark = events_pb2.WatermarkAdvanced(
                epoch=self._notes.epoch,
                rank=rank,
                metrics_seq=answer.metrics_seq,
                log_offset=answer.log_offset,
            )
            self._take(mark)

    async def _send_again(self) -> None:
        before = self._stored_seq, self._stored_offset
        self._moved = time.monotonic()
        self._round += 1
        await self._ask()
        if before == (self._stored_seq, self._stored_offset):
            self._patience = min(2 * self._patience, _LONGEST_STILL_SECONDS)
        if self._sent_seq > self._stored_seq:
            self._reader.rewind()
            self._sent_seq = self._stored_seq
        self._log.offset = min(self._log.offset, self._stored_offset)
