"""One implementation, two faces: methods written once as coroutines serve sync and async callers.

A handle (`Jobs`, `Job`, `Models`…) is generic in its face. Its public methods are coroutines marked `@both`,
or asynchronous generators marked `@stream`. Reading such a method from a handle gives

- with face `Async`: the coroutine function or asynchronous generator as written;
- with face `Sync`: a function that runs it on the client's own event-loop thread and blocks for the result,
  or an ordinary generator over its items.

The overloads of `__get__` tell type checkers which of the two it is, arguments and results included.
A handle's own code never calls marked methods, only plain coroutines, which are the same for both faces.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


class Sync:
    """Face of handles whose methods block."""


class Async:
    """Face of handles whose methods are awaited."""


Face = TypeVar("Face", covariant=True)


class LoopThread:
    """An event loop on a thread of its own, started at the first use, on which the sync face runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Runs a coroutine to its end and returns its result; an interrupt (Ctrl-C) cancels it."""
        if self._thread is threading.current_thread():
            coroutine.close()
            raise RuntimeError("a callback of Client called Client again; use AsyncClient there")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._start())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncGenerator[R, None]) -> Iterator[R]:
        """Yields the items of an asynchronous generator and closes it when the caller stops early."""
        waiting: set[asyncio.Task[Any]] = set()

        async def following() -> tuple[R] | None:
            task = asyncio.current_task()
            assert task is not None, "it runs on the loop"
            waiting.add(task)
            try:
                return (await anext(source),)
            except StopAsyncIteration:
                return None
            finally:
                waiting.remove(task)

        async def close() -> None:
            # An interrupt may strike the caller at any place and leave `anext` waiting; a generator that runs
            # cannot be closed.
            for task in waiting:
                task.cancel()
            if waiting:
                await asyncio.wait(waiting)
            await source.aclose()

        loop = self._start()
        try:
            while (item := self.run(following())) is not None:
                yield item[0]
        finally:
            # Left open beyond the client's end, `stop` closed the source; at the interpreter's end no thread
            # is left to do it, and waiting for one would be for ever.
            if self._loop is loop and not sys.is_finalizing():
                self.run(close())

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `last`, cancels what still runs, and ends the thread. Harmless when it never ran."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(_wind_up(last), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="tunesmith-client", daemon=True
                )
                self._thread.start()
            return self._loop


async def _wind_up(last: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await last()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class Handle(Generic[Face]):
    """Base of all handles. `core` is the client's connection, shared by its handles."""

    def __init__(self, core: Any) -> None:
        self._core = core


class both(Generic[S, P, R]):
    """A method written as a coroutine: blocking with face `Sync`, awaited with face `Async`."""

    def __init__(self, function: Callable[Concatenate[S, P], Coroutine[Any, Any, R]]) -> None:
        self._function = function
        functools.update_wrapper(self, function)  # type: ignore[arg-type]

    @overload
    def __get__(self, instance: None, owner: type) -> both[S, P, R]: ...
    @overload
    def __get__(self, instance: Handle[Sync], owner: type) -> Callable[P, R]: ...
    @overload
    def __get__(self, instance: Handle[Async], owner: type) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        bound = functools.partial(self._function, instance)
        loop: LoopThread | None = instance._core.loop
        if loop is None:
            return functools.update_wrapper(bound, self._function)

        def blocking(*args: P.args, **kwargs: P.kwargs) -> R:
            return loop.run(bound(*args, **kwargs))

        return functools.update_wrapper(blocking, self._function)


class stream(Generic[S, P, R]):
    """A method written as an asynchronous generator: a plain iterator with face `Sync`."""

    def __init__(self, function: Callable[Concatenate[S, P], AsyncIterator[R]]) -> None:
        self._function = function
        functools.update_wrapper(self, function)  # type: ignore[arg-type]

    @overload
    def __get__(self, instance: None, owner: type) -> stream[S, P, R]: ...
    @overload
    def __get__(self, instance: Handle[Sync], owner: type) -> Callable[P, Iterator[R]]: ...
    @overload
    def __get__(self, instance: Handle[Async], owner: type) -> Callable[P, AsyncIterator[R]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        bound = functools.partial(self._function, instance)
        loop: LoopThread | None = instance._core.loop
        if loop is None:
            return functools.update_wrapper(bound, self._function)

        def iterating(*args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
            return loop.iterate(bound(*args, **kwargs))  # type: ignore[arg-type]

        return functools.update_wrapper(iterating, self._function)
