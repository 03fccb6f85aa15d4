"""Sends the node's own series, and keeps them until they are stored."""

import logging
import time
from collections import deque

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_agent.spool import Record, pack
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus
from tunesmith_kit.connection import Message, Subscription

log = logging.getLogger(__name__)
_MOST_RECORDS = 7200  # some hours: what is older is given up when nobody takes it
_SEND_SECONDS = 5.0  # a message costs as much as many records
_STILL_SECONDS = 10.0  # without progress of the watermark before the rest is sent again; then twice as long
_LONGEST_STILL_SECONDS = 600.0


class NodeSeries:
    """Records of one node in memory. Each start has an epoch of its own, and numbers count from 1 in it."""

    def __init__(self, node: str, bus: Bus) -> None:
        self._node, self._bus = node, bus
        self._records: deque[Record] = deque()
        self._subscription: Subscription | None = None
        self._epoch = self._seq = self._sent = self._stored = self._round = 0
        self._sent_time = self._moved = float("-inf")
        self._still = _STILL_SECONDS

    @property
    def num_waiting(self) -> int:
        """Records that are not known to be stored."""
        return len(self._records)

    async def start(self) -> None:
        """Begins to hear how far the records are stored."""
        await self._begin()

    async def stop(self) -> None:
        """Sends what is left, and stops hearing."""
        if self._bus.connected:
            await self._send()
        if self._subscription is not None:
            await self._subscription.close()

    async def add(self, unix_time: float, values: dict[str, float]) -> None:
        """Takes a sample, and sends those at hand from time to time."""
        if len(self._records) >= _MOST_RECORDS:
            for _ in range(_MOST_RECORDS // 10):
                self._records.popleft()
            await self._begin()  # a gap in the numbers would never close
        self._seq += 1
        record = Record(
            self._seq, int(unix_time), int(unix_time * 1e6), tuple(values), tuple(map(float, values.values()))
        )
        self._records.append(record)
        now = time.monotonic()
        if self._sent > self._stored and now - self._moved > self._still:
            self._sent, self._moved = self._stored, now
            self._still = min(2 * self._still, _LONGEST_STILL_SECONDS)
            self._round += 1
        if self._bus.connected and now - self._sent_time >= _SEND_SECONDS:
            await self._send()

    async def _begin(self) -> None:
        """Begins an epoch; what is not stored yet goes into it."""
        self._epoch = max(int(time.time() * 1000), self._epoch + 1)
        self._records = deque(
            Record(seq, each.step, each.time_us, each.keys, each.values)
            for seq, each in enumerate(self._records, 1)
        )
        self._seq, self._sent, self._stored = len(self._records), 0, 0
        if self._subscription is not None:
            await self._subscription.close()
        subject = subjects.node_watermark(self._node, self._epoch)
        self._subscription = await self._bus.subscribe(subject, self._hear)

    async def _send(self) -> None:
        self._sent_time = time.monotonic()
        if self._sent == self._stored:
            self._moved = self._sent_time
        fresh = [record for record in self._records if record.seq > self._sent]
        job_id = f"node.{self._node}"
        for batch in pack(job_id, self._epoch, subjects.NODE_RANK, fresh):
            msg_id = f"{job_id}:{self._epoch}:{batch.first_seq}:{self._round}"
            future = await self._bus.publish_soon(
                subjects.node_metrics(self._node, self._epoch), batch.SerializeToString(), msg_id, deadline=60
            )
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._sent = batch.first_seq + batch.num_records - 1

    async def _hear(self, message: Message) -> None:
        mark = events_pb2.WatermarkAdvanced.FromString(message.payload)
        if mark.epoch != self._epoch or mark.metrics_seq <= self._stored:
            return
        self._stored, self._moved, self._still = mark.metrics_seq, time.monotonic(), _STILL_SECONDS
        while self._records and self._records[0].seq <= self._stored:
            self._records.popleft()
