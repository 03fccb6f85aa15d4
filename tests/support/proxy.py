"""A TCP proxy that a test can cut: hold (nothing passes, nobody is told) or reset (all breaks)."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

_CHUNK = 65536


class Proxy:
    """Forwards `own`:`port` to a target. Runs on an event loop in a thread of its own."""

    def __init__(self, host: str, port: int, own: str = "127.0.0.1") -> None:
        self._target, self._own = (host, port), own
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._passing = self._call(self._event())
        self._refusing = False
        self._server = self._call(asyncio.start_server(self._serve, own, 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"{self._own}:{self.port}"

    def hold(self) -> None:
        """Lets nothing through; connections stay open, as behind a dead switch."""
        self._loop.call_soon_threadsafe(self._passing.clear)

    def reset(self) -> None:
        """Breaks every connection with RST and refuses new ones."""
        self._call(self._abort(refuse=True))

    def heal(self) -> None:
        """Lets everything through again; what was held goes on."""
        self._call(self._open())

    def close(self) -> None:
        """Ends the proxy and its connections."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _event(self) -> asyncio.Event:
        event = asyncio.Event()
        event.set()
        return event

    async def _abort(self, refuse: bool) -> None:
        self._refusing = refuse
        for writer in list(self._writers):
            writer.transport.abort()

    async def _open(self) -> None:
        self._refusing = False
        self._passing.set()

    async def _end(self) -> None:
        self._server.close()
        await self._abort(refuse=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            if self._refusing:
                return
            await self._passing.wait()
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers.add(far_writer)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, far_writer))
                    group.create_task(self._pump(far_reader, writer))
            finally:
                self._drop(far_writer)
        except* (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either side broke: so does the other
        finally:
            self._drop(writer)

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        with contextlib.suppress(RuntimeError):
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._passing.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("the other side ended")
