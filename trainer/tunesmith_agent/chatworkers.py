"""The chat workers of a node: started on demand, kept warm, ended when idle or when memory is wanted."""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from tunesmith.api.nodes.v1 import chat_pb2 as wire
from tunesmith.errors import ResourceExhausted
from tunesmith_agent.chatworker import ChatWorker
from tunesmith_agent.inputs import InputCache

_NICE = 10
# Weights of 16 bits in the file are 32 in memory, and the answers need some too.
_MEMORY_FACTOR = 2.3


@dataclass(frozen=True)
class ChatLimits:
    """What answers may take of a node. `models` 0: it does not answer at all; `gpu` -1: the processor."""

    models: int = 2
    answers: int = 2
    threads: int = 0
    idle_seconds: float = 600.0
    gpu: int = -1


class Workers:
    """At most as many workers as may be, by the digest of the model each has loaded."""

    def __init__(self, node: str, inputs: InputCache, logs: Path, limits: ChatLimits) -> None:
        self._node, self._inputs, self._logs, self._limits = node, inputs, logs, limits
        self._workers: dict[str, ChatWorker] = {}
        self._starting = asyncio.Lock()

    def loaded(self) -> list[str]:
        """Digests of the models that are loaded."""
        return [key for key, worker in self._workers.items() if worker.loaded]

    async def stop(self) -> None:
        """Ends all of them."""
        for worker in list(self._workers.values()):
            await self._end(worker)

    async def of(self, task: wire.ChatTask, folder: Path | None) -> ChatWorker:
        """The worker that has the model, or can have it: an old one, or a new one in another's place."""
        key = task.base_model_digest
        model, full = None, folder
        if task.kind == "checkpoint" and folder is not None and await asyncio.to_thread(_is_full, folder):
            key = task.digest
        elif task.kind == "full":
            key, model, full = task.digest, folder, None
        else:
            full = None
        async with self._starting:
            worker = self._workers.get(key)
            if worker is not None and worker.alive:
                return worker
            if model is None:
                model = await self._inputs.fetch("models", task.base_model_digest)
            await self._make_room(model)
            log_file = self._logs / f"{key[:12]}.log"
            gpus = (self._limits.gpu,) if self._limits.gpu >= 0 else ()
            self._workers[key] = worker = await ChatWorker.start(
                key, self._arguments(model, full), log_file, gpus
            )
        return worker

    def _arguments(self, model: Path, checkpoint: Path | None) -> list[str]:
        threads = self._limits.threads or max(1, (os.cpu_count() or 2) // 2)
        device = "cuda" if self._limits.gpu >= 0 else "cpu"
        arguments = [
            "--model",
            str(model),
            "--digest",
            model.name,
            "--threads",
            str(threads),
            "--device",
            device,
        ]
        arguments += ["--nice", str(_NICE)]
        return arguments if checkpoint is None else [*arguments, "--checkpoint", str(checkpoint)]

    async def _make_room(self, model: Path) -> None:
        """Ends idle workers, the longest idle first, until one more may be and its model fits."""
        needed = await asyncio.to_thread(_weight_bytes, model) * _MEMORY_FACTOR
        await self.tidy()
        while True:
            crowded = len(self._workers) >= self._limits.models
            if not crowded and psutil.virtual_memory().available >= needed:
                return
            idle = [worker for worker in self._workers.values() if not worker.busy]
            if idle:
                await self._end(max(idle, key=lambda worker: worker.idle_seconds))
            elif crowded:
                await asyncio.sleep(0.2)  # its answers end; ours is held meanwhile
            else:
                raise ResourceExhausted(
                    "NODE_MEMORY_FULL",
                    f"the model needs {needed / 1e9:.1f} GB of memory on {self._node}; "
                    f"{psutil.virtual_memory().available / 1e9:.1f} GB are free",
                    field="node",
                    value=self._node,
                    remedy="choose a smaller model, or another node with `node`",
                )

    async def tidy(self) -> None:
        """Ends workers that were idle for long, or whose memory is wanted, and forgets dead ones."""
        memory = psutil.virtual_memory()
        wanted = memory.available < memory.total / 10
        for worker in list(self._workers.values()):
            idle = not worker.busy and (wanted or worker.idle_seconds > self._limits.idle_seconds)
            if not worker.alive or idle:
                await self._end(worker)

    async def _end(self, worker: ChatWorker) -> None:
        if self._workers.get(worker.key) is worker:
            del self._workers[worker.key]
        await worker.end()


def _is_full(checkpoint: Path) -> bool:
    """Whether a checkpoint is of a full fine-tuning."""
    try:
        spec = json.loads((checkpoint / "state.json").read_bytes()).get("spec") or {}
        return "full" in (spec.get("adapter") or {})
    except (ValueError, AttributeError, RecursionError):
        return False  # the worker finds out what is wrong with it


def _weight_bytes(model: Path) -> int:
    return sum(path.stat().st_size for path in model.rglob("*.safetensors"))
