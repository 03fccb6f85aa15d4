"""A chat worker as its agent sees it: a process with one model loaded that dies with the agent."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import REASONS, FailedPrecondition, InvalidArgument, TunesmithError, Unavailable
from tunesmith_agent.process import environment

_LINE_BYTES = 4 * 1024 * 1024
# The worker itself ends a template after 2 s; what does not let it (one endless operation in C) is killed.
_TEMPLATE_SECONDS = 4.0
_MODULE = [sys.executable, "-m", "tunesmith_trainer.serve"]
Event = Mapping[str, Any]
# What the trainer package calls it, and what the table of errors does.
_OURS = {"TEMPLATE_REFUSED": "CHAT_TEMPLATE_REFUSED"}


class ChatWorker:
    """A process that holds one model; ask it anything, any number at once."""

    def __init__(self, process: "subprocess.Popen[bytes]", output: asyncio.StreamReader, key: str) -> None:
        self.key = key
        self._process, self._output = process, output
        self._writing = asyncio.Lock()
        self._answers: dict[str, asyncio.Queue[Event]] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watch: asyncio.TimerHandle | None = None
        self._lost: TunesmithError | None = None
        self._used = time.monotonic()
        self._reader = asyncio.create_task(self._read(), name=f"chat worker {process.pid}")

    @classmethod
    async def start(
        cls, key: str, arguments: Sequence[str], log: Path, gpus: Sequence[int] = ()
    ) -> "ChatWorker":
        """Starts the process; `ready` waits for its model."""
        process = await asyncio.to_thread(_launch, [*_MODULE, *arguments], log, gpus)
        output = asyncio.StreamReader(_LINE_BYTES)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(output), process.stdout
        )
        return cls(process, output, key)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._lost is None

    @property
    def loaded(self) -> bool:
        """Whether its model is loaded."""
        return self.alive and self._ready.done()

    @property
    def busy(self) -> bool:
        """Whether an answer is under way, or its model is still being loaded."""
        return bool(self._answers) or not self._ready.done()

    @property
    def idle_seconds(self) -> float:
        """Seconds since its last answer ended."""
        return 0.0 if self.busy else time.monotonic() - self._used

    async def ready(self) -> None:
        """Waits until the model is loaded; raises what kept it from that."""
        await asyncio.shield(self._ready)

    async def ask(self, task: str, request: Mapping[str, Any]) -> "asyncio.Queue[Event]":
        """Begins an answer; its events come in the queue, the last is `done` or `failed`."""
        if self._lost is not None:
            raise self._lost
        events = self._answers.setdefault(task, asyncio.Queue())
        await self._say({"do": "answer", "task": task, **request})
        return events

    async def forget(self, task: str) -> None:
        """Ends an answer, finished or not."""
        if self._answers.pop(task, None) is not None:
            self._used = time.monotonic()
            await self._say({"do": "stop", "task": task})

    async def end(self) -> None:
        """Kills the process and waits for its end."""
        self._kill()
        await self._reader

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _say(self, line: Mapping[str, Any]) -> None:
        async with self._writing:
            await asyncio.to_thread(self._write, json.dumps(line).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        # A process that just died is told of by the end of its output.
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(line)
            self._process.stdin.flush()

    async def _read(self) -> None:
        try:
            async for line in self._output:
                self._take(json.loads(line))
        finally:
            self._kill()
            await asyncio.to_thread(self._bury)
            self._end(
                Unavailable(
                    "CHAT_LOST",
                    "the process that answered has ended",
                    remedy="ask again; if it ends again, the node's memory may be too small for the model",
                )
            )

    def _bury(self) -> None:
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _take(self, event: Event) -> None:
        kind = event["event"]
        if kind == "ready":
            self._ready.set_result(None)
        elif kind == "failed" and not event["task"]:
            self._end(refusal(event))
        elif kind == "rendering":
            self._watch = asyncio.get_running_loop().call_later(_TEMPLATE_SECONDS, self._endless)
        elif kind == "rendered":
            self._unwatch()
        elif event["task"] in self._answers:
            self._answers[event["task"]].put_nowait(event)

    def _endless(self) -> None:
        error = InvalidArgument(
            "CHAT_TEMPLATE_REFUSED",
            "the chat template did not end, and its process was killed",
            remedy="use a model or template whose rendering ends",
        )
        self._end(error)
        self._kill()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _end(self, error: TunesmithError) -> None:
        """Tells everybody who waits; the first error stays."""
        if self._lost is None:
            self._lost = error
        self._unwatch()
        if not self._ready.done():
            self._ready.set_exception(self._lost)
            self._ready.exception()  # whoever asks for it hears it; nobody need
        lost = {
            "event": "failed",
            "reason": self._lost.reason,
            "message": self._lost.message,
            "remedy": self._lost.remedy,
        }
        for events in self._answers.values():
            events.put_nowait(lost)


def _launch(command: Sequence[str], log: Path, gpus: Sequence[int]) -> "subprocess.Popen[bytes]":
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as errors:
        # Not asyncio's: under uvloop that forks, which a process with gRPC's threads must not.
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(gpus),
            start_new_session=True,
        )


def refusal(event: Event) -> TunesmithError:
    """What a worker said went wrong, as an error of the table."""
    reason = event["reason"]
    if reason == "ADAPTER_DAMAGED":
        return FailedPrecondition(
            "ARTIFACT_CORRUPT", event["message"], field="targets", remedy=event["remedy"]
        )
    reason = _OURS.get(reason, reason)
    if reason not in REASONS:
        reason = "MODEL_UNUSABLE"
    return REASONS[reason][0](reason, event["message"], remedy=event["remedy"])
