"""Background loops of a service: started together, restarted when they fail, stopped together."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


class Tasks:
    """A set of supervised loops. A loop that raises is logged and started again with growing pauses."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Starts `run()` and keeps it running until it returns or `stop` is called."""
        self._add(asyncio.create_task(self._supervise(name, run), name=name))

    def once(self, name: str, work: Awaitable[object]) -> None:
        """Starts work that is not repeated; a failure is logged."""
        self._add(asyncio.create_task(self._log_failure(name, work), name=name))

    async def stop(self) -> None:
        """Cancels everything and waits until it has ended.

        Cancels again while something goes on: `asyncio.wait_for` of Python 3.11 can swallow a cancellation.
        """
        while tasks := set(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1)

    def _add(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        pause = 0.2
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await run()
                return
            except asyncio.CancelledError:
                raise
            except Exception:
                if asyncio.get_running_loop().time() - began > 60:
                    pause = 0.2
                log.exception("background loop failed", extra={"loop": name, "retry_seconds": pause})
            await asyncio.sleep(pause)
            pause = min(pause * 2, 10)

    async def _log_failure(self, name: str, work: Awaitable[object]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("background work failed", extra={"work": name})
