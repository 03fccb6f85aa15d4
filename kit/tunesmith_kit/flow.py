"""Bytes between a stream and a file, the disk's work in a thread while the next chunk is on its way."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import TypeVar

Chunk = TypeVar("Chunk")


async def drain(chunks: AsyncIterable[Chunk], write: Callable[[Chunk], object]) -> None:
    """Hands chunks to `write`, in their order, one at a time; no call of it runs on when this ends."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Future[object] | None = None
    try:
        async for chunk in chunks:
            if under_way is not None:
                await asyncio.shield(under_way)
            under_way = loop.run_in_executor(None, write, chunk)
        if under_way is not None:
            await asyncio.shield(under_way)
    finally:
        await _ended(under_way)


async def pump(read: Callable[[], bytes]) -> AsyncGenerator[bytes, None]:
    """What `read` gives until it gives nothing; it is asked for one chunk ahead."""
    loop = asyncio.get_running_loop()
    under_way = loop.run_in_executor(None, read)
    try:
        while chunk := await asyncio.shield(under_way):
            under_way = loop.run_in_executor(None, read)
            yield chunk
    finally:
        await _ended(under_way)


class Ahead(AsyncIterator[Chunk]):
    """What `read` gives until it is `end`; the next is asked for while one is used.

    Not a generator: whoever closes it need not be who reads it. A gRPC call whose server answers early
    still waits here for the next message when its caller is done, and a generator could not be closed then.
    """

    def __init__(self, read: Callable[[], asyncio.Future[Chunk]], end: object) -> None:
        self._read, self._end = read, end
        self._under_way = read()

    async def __anext__(self) -> Chunk:
        item = await self._under_way
        if item is self._end:
            raise StopAsyncIteration
        self._under_way = self._read()
        return item

    async def aclose(self) -> None:
        """Ends the reading under way."""
        self._under_way.cancel()
        await _ended(self._under_way)


async def _ended(under_way: "asyncio.Future[Chunk] | None") -> None:
    """Waits for work that nobody asks for any more, for a thread cannot be stopped; its error is dropped."""
    if under_way is None:
        return
    if not under_way.done():
        await asyncio.wait([under_way])
    if not under_way.cancelled():
        under_way.exception()
