"""Leases: one holder at a time, fencing that only grows, and none called expired that we could not hear."""

import asyncio
from pathlib import Path

import pytest

from tests.support.bus import connected, running_nats
from tests.support.wait import until
from tunesmith.errors import FailedPrecondition
from tunesmith_kit.lease import Lease, LeaseWatcher, lease_key

KEY = lease_key("node", "gpu-1")


async def test_a_lease_has_one_holder_and_the_next_gets_it_after_its_end(tmp_path: Path) -> None:
    async with running_nats(tmp_path) as server, connected(server) as bus, connected(server) as other:
        first = await Lease.acquire(bus, KEY, "one", ttl=1.0)
        with pytest.raises(FailedPrecondition, match="held by one") as caught:
            await Lease.acquire(other, KEY, "two", ttl=1.0)
        assert caught.value.reason == "LEASE_HELD"
        before = first.revision
        await until(lambda: first.revision > before + 2, "renewals")
        second = Lease(other, KEY, "two", ttl=1.0)
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
        lease = await Lease.acquire(bus, KEY, "one", ttl=1.0, changed=changes.append)
        await server.kill()
        await until(lambda: changes == [True, False], "the loss")
        await server.start()
        await until(lambda: changes == [True, False, True], "the lease again")
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
    async with running_nats(tmp_path) as server, connected(server) as bus, connected(server) as node:
        watcher = LeaseWatcher(bus)
        await watcher.start()
        lease = await Lease.acquire(node, KEY, "one", ttl=1.0)
        await until(lambda: watcher.last_seen(KEY) is not None, "the lease")
        await server.kill()
        await until(lambda: not lease.held, "the holder's own clock")
        assert not watcher.expired(KEY, 1.0)
        await server.start()
        expired: list[bool] = []

        async def look() -> None:
            while not lease.held:
                expired.append(watcher.expired(KEY, 1.5))
                await asyncio.sleep(0.005)

        await asyncio.wait_for(look(), 30)
        assert not any(expired)
        await lease.release()
        await watcher.stop()
