"""A real nats-server of its own for a test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tunesmith_kit.bus import Bus
from tunesmith_kit.nats_server import EmbeddedNats

TOKEN = "test-token"


@asynccontextmanager
async def running_nats(folder: Path) -> AsyncIterator[EmbeddedNats]:
    """A server that runs for the time of the block; it may be killed and started again inside."""
    server = EmbeddedNats(folder / "nats", token=TOKEN)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def connected(server: EmbeddedNats, name: str = "test") -> AsyncIterator[Bus]:
    """A bus connected for the time of the block."""
    bus = await Bus.connect(server.url, TOKEN, name)
    try:
        yield bus
    finally:
        await bus.close()
