"""Leases: one holder at a time, fencing that only grows, and none called expired that we could not hear."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.support.bus import connected, running_nats
from tests.support.wait import until
from tunesmith.errors import FailedPrecondition
from tunesmith_kit.bus import Bus
from tunesmith_kit.lease import Lease, LeaseWatcher, lease_key

KEY = lease_key("node", "gpu-1")


async def test_a_lease_has_one_holder_and_the_next_gets_it_after_its_end(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, connected(server) as bus, connected(server) as other:
        first = await Lease.acquire(bus, KEY, "one", ttl=6)
        with pytest.raises(FailedPrecondition, match="held by one") as caught:
            await Lease.acquire(other, KEY, "two", ttl=6)
        assert caught.value.reason == "LEASE_HELD"
        before = first.revision
        await until(lambda: first.revision > before, "a renewal")
        second = Lease(other, KEY, "two", ttl=3)
        second.start()
        await first.release()
        await until(lambda: second.held, "the second holder")
        assert second.revision > first.revision
        assert not first.held
        await second.release()


async def test_a_holder_that_died_is_followed_after_the_time_to_live(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, connected(server) as other:
        async with connected(server) as bus:
            first = Lease(bus, KEY, "one", ttl=1.0)
            first.start()
            await until(lambda: first.held, "the first holder")
            assert first._task is not None
            first._task.cancel()  # it dies without a word
        second = Lease(other, KEY, "two", ttl=1.0)
        second.start()
        await until(lambda: second.held, "the second holder")
        assert second.revision > first.revision
        await second.release()


async def test_the_same_holder_takes_its_lease_over_at_once(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, connected(server) as bus, connected(server) as other:
        first = await Lease.acquire(bus, KEY, "one", ttl=60)
        again = await Lease.acquire(other, KEY, "one", ttl=60)
        assert again.revision > first.revision
        await again.release()
        await first.release()


async def test_a_holder_knows_of_its_loss_and_takes_the_lease_back(tmp_path: Path) -> None:
    changes: list[bool] = []
    async with running_nats(tmp_path) as server, connected(server) as bus:
        lease = Lease(bus, KEY, "one", ttl=3, changed=changes.append)
        lease.start()
        await until(lambda: changes == [True], "the lease")
        await server.kill()
        await until(lambda: changes == [True, False], "the loss")
        await server.start()
        await until(lambda: changes == [True, False, True], "the lease again")
        await lease.release()


async def test_a_lease_that_somebody_writes_over_twice_is_held_on_to(tmp_path: Path) -> None:
    meddled = asyncio.Event()

    class Unlucky(Lease):
        """Whenever it looks, its own former process writes right after that, as a late message would."""

        async def _look(self) -> None:
            await super()._look()
            if self.revision and not meddled.is_set():
                await write_over(self._bus)
                if self.held:  # the second time in one renewal: the first was before it
                    meddled.set()

    async def write_over(bus: Bus) -> None:
        body = json.dumps({"holder": "one", "nonce": "former"}).encode()
        await bus.publish(f"$KV.lease.{KEY}", body, f"former-{time.monotonic_ns()}", {"Nats-TTL": "60s"})

    async with running_nats(tmp_path) as server, connected(server) as bus:
        lease = Unlucky(bus, KEY, "one", ttl=6)
        lease.start()
        await until(lambda: lease.held, "the lease")
        await write_over(bus)
        await until(meddled.is_set, "a renewal that was written over twice")
        before = lease.revision
        await until(lambda: lease.held and lease.revision > before, "the next renewal")
        await lease.release()


async def test_only_silence_that_was_listened_to_counts(tmp_path: Path) -> None:
    clock = [1000.0]
    async with running_nats(tmp_path) as server, connected(server) as bus, connected(server) as node:
        watcher = LeaseWatcher(bus, monotonic=lambda: clock[0])
        watcher._bus.connected_since = lambda: 0.0  # type: ignore[method-assign]  # judged by our clock here
        await watcher.start()
        await until(lambda: watcher._last_echo is not None, "the first echo")
        lease = await Lease.acquire(node, KEY, "one", ttl=60)
        await until(lambda: watcher.last_seen(KEY) is not None, "the lease")

        async def pass_time(seconds: float) -> None:
            clock[0] += seconds
            now = clock[0]
            await until(lambda: watcher._last_echo is not None and watcher._last_echo >= now, "an echo")

        await pass_time(2.0)
        assert not watcher.expired(KEY, 5.0)
        await pass_time(2.0)
        await pass_time(2.0)
        assert watcher.expired(KEY, 5.0)
        watcher.restart_clocks()  # as after an outage of the database
        assert not watcher.expired(KEY, 5.0)
        await pass_time(2.0)
        await pass_time(30.0)  # we were stalled: nothing was heard, so nothing is known
        assert not watcher.expired(KEY, 5.0)
        await lease.release()
        await until(lambda: watcher.expired(KEY, 1e9), "the release")
        await watcher.stop()


async def test_an_outage_of_nats_expires_nobody(tmp_path: Path) -> None:
    ahead = 0.0
    async with running_nats(tmp_path) as server, connected(server) as bus, connected(server) as node:
        watcher = LeaseWatcher(bus, monotonic=lambda: time.monotonic() + ahead)
        await watcher.start()
        lease = Lease(node, KEY, "one", ttl=1.0)
        lease.start()
        await until(lambda: watcher.last_seen(KEY) is not None, "the lease")
        await server.kill()
        await until(lambda: not lease.held, "the holder's own clock")
        await until(lambda: not bus.connected, "the watcher noticed too")
        ahead = 1000.0  # the outage has lasted for long
        assert not watcher.expired(KEY, 30)
        await server.start()
        expired: list[bool] = []

        async def look() -> None:
            while not lease.held:
                expired.append(watcher.expired(KEY, 30))  # as long as the holder may need to come back
                await asyncio.sleep(0.005)

        await asyncio.wait_for(look(), 90)
        await until(lambda: watcher._last_echo is not None and watcher._last_echo > 1000, "an echo")
        expired.append(watcher.expired(KEY, 30))
        assert not any(expired)
        await lease.release()
        await watcher.stop()
