"""One service alone with a real bus and a real database, called over real gRPC."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import grpc

from tunesmith_kit import host, rpc
from tunesmith_kit.bus import Bus
from tunesmith_kit.nats_server import EmbeddedNats

T = TypeVar("T")
TOKEN = "internal-test-token"


class Harness:
    """A running service, a channel to it, the bus it uses, and the metadata to call it with."""

    def __init__(
        self, running: host.Running, channel: grpc.aio.Channel, bus: Bus, nats: EmbeddedNats
    ) -> None:
        self.running, self.channel, self.bus, self.nats = running, channel, bus, nats
        self.metadata = rpc.as_service(TOKEN, "tests")


@asynccontextmanager
async def service(
    name: str, root: Path, overrides: Mapping[str, object] | None = None
) -> AsyncIterator[Harness]:
    """Starts nats-server and the service; ends both."""
    nats = EmbeddedNats(root / "nats", token="bus-test-token")
    await nats.start()
    try:
        async with running_on(nats, name, root, overrides) as harness:
            yield harness
    finally:
        await nats.stop()


@asynccontextmanager
async def running_on(
    nats: EmbeddedNats, name: str, root: Path, overrides: Mapping[str, object] | None = None
) -> AsyncIterator[Harness]:
    """Starts the service on a bus that runs already."""
    settings = {
        "data_dir": root,
        "nats_url": nats.url,
        "nats_token": "bus-test-token",
        "internal_token": TOKEN,
        "log_level": "warning",
        **(overrides or {}),
    }
    running = await host.start(name, settings)
    bus = await Bus.connect(nats.url, "bus-test-token", "tests")
    channel = rpc.connect(running.address)
    try:
        yield Harness(running, channel, bus, nats)
    finally:
        await channel.close()
        await bus.close()
        await running.stop()


async def until(look: Callable[[], Awaitable[T | None]], what: str, seconds: float = 90) -> T:
    """Returns what `look` finds once it is not None; fails after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while (found := await look()) is None:
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)
    return found
