"""How each kind of fault is made. Each function makes one, waits `hold` seconds, and puts things right again.

Returns what was hit, or nothing when there was nothing to hit (then it does not count).
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from tests.faults import disks
from tests.faults.history import History
from tests.faults.schedule import AIMED
from tests.faults.site import Site, Trainer, stop_signal
from tests.support.processes import wait_for
from tunesmith.errors import TunesmithError
from tunesmith_agent.process import start_ticks
from tunesmith_kit import streams
from tunesmith_kit.bus import Bus
from tunesmith_kit.connection import ApiError

_AIM_SECONDS = 60.0  # for a target to come by


class Injector:
    """Makes faults at a site. Two faults never hit the same process at once; different ones may overlap."""

    def __init__(self, site: Site, history: History) -> None:
        self._site, self._history = site, history
        self._locks: dict[str, threading.Lock] = {}
        self.ended = threading.Event()

    def deaths(self) -> list[str]:
        """Names of processes that are gone although no fault of ours is at them."""
        gone = []
        for name, process in self._site.processes.items():
            lock = self._locks.setdefault(name, threading.Lock())
            if lock.acquire(blocking=False):
                try:
                    if not process.alive():
                        gone.append(name)
                finally:
                    lock.release()
        return gone

    def make(self, kind: str, hold: float, draw: int) -> str:
        """Makes a fault of a kind and returns what was hit."""
        rng = random.Random(draw)
        special: dict[str, Callable[[random.Random, float], str]] = {
            "kill_trainer": self._kill_trainer,
            "stop_trainer": self._stop_trainer,
            "damage_checkpoint": self._damage_checkpoint,
            "damage_cache": self._damage_cache,
            "wipe_bus": self._wipe_bus,
            "delete_stream": self._delete_stream,
            "kill_postgres": self._kill_postgres,
            "stop_postgres": self._stop_postgres,
            "cut_hold": lambda rng, hold: self._cut(rng, hold, reset=False),
            "cut_reset": lambda rng, hold: self._cut(rng, hold, reset=True),
            "cut_wire": lambda rng, hold: self._cut_wire(rng, hold, one_way=False),
            "cut_one_way": lambda rng, hold: self._cut_wire(rng, hold, one_way=True),
            "lose_node": self._lose_node,
            "full_disk": self._full_disk,
            "fail_fsync": self._fail_fsync,
        }
        if kind in special:
            # One fault at a time to trainers: else all that wait for a target would hit the same one.
            with self._only("trainer") if kind in AIMED else contextlib.nullcontext():
                return special[kind](rng, hold)
        verb, _, what = kind.partition("_")
        if what == "nats" and self._site.mode == "embedded":
            return self._hit_child_nats(verb, hold)
        names = sorted(name for name in self._site.processes if name == what or name.startswith(f"{what}-"))
        if what == "agent":
            names = sorted(name for name in self._site.processes if name.startswith("node-"))
        name = rng.choice(names)
        with self._only(name):
            return self._kill(name, hold) if verb == "kill" else self._stop(name, hold)

    @contextlib.contextmanager
    def _only(self, *names: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in sorted(names):
                stack.enter_context(self._locks.setdefault(name, threading.Lock()))
            yield

    def _pause(self, seconds: float) -> None:
        self.ended.wait(seconds)

    def _kill(self, name: str, hold: float) -> str:
        process = self._site.processes[name]
        process.kill()
        self._pause(hold)
        process.start()
        return name

    def _stop(self, name: str, hold: float) -> str:
        pid = self._site.processes[name].pid
        stop_signal(pid, True)
        self._pause(hold)
        stop_signal(pid, False)
        return name

    def _hit_child_nats(self, verb: str, hold: float) -> str:
        with self._only("up"):
            pid = self._site.nats_pid()
            if pid is None:
                return ""
            if verb == "kill":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # `tunesmith up` brings it back itself
            else:
                stop_signal(pid, True)
                self._pause(hold)
                stop_signal(pid, False)
            return "nats-server"

    def _aim(
        self, rng: random.Random, wanted: Callable[[Trainer], object] = lambda _: True
    ) -> Trainer | None:
        """Returns a trainer that makes steps, waiting a while for one."""
        deadline = time.monotonic() + _AIM_SECONDS
        while time.monotonic() < deadline and not self.ended.is_set():
            living = self._site.trainers()
            # Rank 0 alone logs: where it lives on another node, its peers make steps too.
            stepping = {(t.job_id, t.epoch) for t in living if _steps(t)}
            found = [t for t in living if (t.job_id, t.epoch) in stepping and wanted(t)]
            if found:
                return rng.choice(found)
            self._pause(0.05)
        return None

    def _kill_trainer(self, rng: random.Random, hold: float) -> str:
        trainer = self._aim(rng)
        if trainer is None:
            return ""
        self._pause(rng.uniform(0, 0.3))  # at any instant, not at the one a step was seen
        return self._end(trainer, [rng.choice(trainer.pids)])

    def _end(self, trainer: Trainer, pids: Sequence[int]) -> str:
        living = [pid for pid in pids if start_ticks(pid) is not None]
        if not living:
            return ""  # it came to its end by itself
        self._history.add("trainer_killed", job=trainer.job_id, epoch=trainer.epoch, pids=living)
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        return f"{trainer.job_id}-{trainer.epoch}"

    def _stop_trainer(self, rng: random.Random, hold: float) -> str:
        trainer = self._aim(rng)
        if trainer is None:
            return ""
        pid = rng.choice(trainer.pids)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)
            if number == signal.SIGSTOP:
                self._pause(hold)
        return f"{trainer.job_id}-{trainer.epoch}"

    def _damage_checkpoint(self, rng: random.Random, hold: float) -> str:
        def newest(trainer: Trainer) -> list[Path]:
            return sorted(trainer.folder.glob("checkpoints/step-*"))[-1:]

        trainer = self._aim(rng, newest)
        if trainer is None:
            return ""
        for pid in trainer.pids:
            stop_signal(pid, True)  # it must not replace what we damage meanwhile
        folders = newest(trainer)
        damaged = disks.damage(folders, rng)
        if damaged:
            step = int(folders[0].name.rpartition("-")[2])
            self._history.add("damaged", job=trainer.job_id, epoch=trainer.epoch, step=step)
        else:  # it was just replaced
            for pid in trainer.pids:
                stop_signal(pid, False)
        return damaged and f"{self._end(trainer, trainer.pids)} {damaged}"

    def _damage_cache(self, rng: random.Random, hold: float) -> str:
        trainer = self._aim(rng)
        folders = [f for home in self._site.homes() for f in home.glob("cache/*/[0-9a-f]*") if f.is_dir()]
        if trainer is None or not folders:
            return ""
        damaged = disks.damage([rng.choice(sorted(folders))], rng)
        return damaged and f"{self._end(trainer, trainer.pids)} {damaged}"

    def _wipe_bus(self, rng: random.Random, hold: float) -> str:
        if self._site.mode == "embedded":
            with self._only("up"):
                self._site.processes["up"].kill()
                wait_for(lambda: self._site.nats_pid() is None, 60, "nats-server went with its parent")
                disks.remove(self._site.platform.root / "data" / "nats")
                self._pause(hold)
                self._site.processes["up"].start()
            return "nats"
        names = [name for name in self._site.processes if name.startswith("nats-")]
        with self._only(*names):
            for name in names:
                self._site.processes[name].kill()
                disks.remove(self._site.platform.root / name / "data")
            self._pause(hold)
            for name in names:
                self._site.processes[name].start()
        return "nats"

    def _delete_stream(self, rng: random.Random, hold: float) -> str:
        stream = rng.choice(("EVENTS", "CMD", "METRICS", "LOGS", f"KV_{streams.LEASE_BUCKET}"))
        url, token = self._site.bus()
        try:
            asyncio.run(_delete_stream(url, token, stream))
        except (TunesmithError, ApiError, OSError, TimeoutError):
            return ""  # the bus is away just now, or another fault has taken the stream away
        return stream

    def _kill_postgres(self, rng: random.Random, hold: float) -> str:
        assert self._site.database is not None
        with self._only("postgres"):
            self._site.database.kill()
            self._pause(hold)
            self._site.database.start()
        return "postgres"

    def _stop_postgres(self, rng: random.Random, hold: float) -> str:
        assert self._site.database is not None
        with self._only("postgres"):
            parent = psutil.Process(self._site.database.pid)
            pids = [parent.pid, *(child.pid for child in parent.children())]
            for pid in pids:
                stop_signal(pid, True)
            self._pause(hold)
            for pid in pids:
                stop_signal(pid, False)
        return "postgres"

    def _cut(self, rng: random.Random, hold: float, *, reset: bool) -> str:
        node = rng.choice(sorted(self._site.wires))
        with self._only(f"wire {node}"):
            for proxy in self._site.wires[node]:
                proxy.reset() if reset else proxy.hold()
            self._pause(hold)
            for proxy in self._site.wires[node]:
                proxy.heal()
        return node

    def _cut_wire(self, rng: random.Random, hold: float, *, one_way: bool) -> str:
        """A node off the network, or one that only hears, or is only heard."""
        net = self._site.network
        assert net is not None
        node = rng.choice(sorted(net.nodes))
        cut = rng.choice((net.deafen, net.mute)) if one_way else net.cut
        with self._only(f"card {node}"):
            try:
                cut(node)
                self._pause(hold)
            finally:
                net.heal(node)
        return f"{node} {cut.__name__}"

    def _lose_node(self, rng: random.Random, hold: float) -> str:
        node = rng.choice(sorted(self._site.wires))
        with self._only(node):
            self._site.processes[node].kill()
            for trainer in self._site.trainers():
                if trainer.folder.parent.parent.name == node:
                    self._end(trainer, trainer.pids)
            self._pause(hold)
            self._site.processes[node].start()
        return node

    def _fail_fsync(self, rng: random.Random, hold: float) -> str:
        """Every fsync of a trainer answers EIO for a while, as of a disk that dies."""
        trainer = self._aim(rng)
        if trainer is None:
            return ""
        which = "trace=fsync,fdatasync"
        command = ["strace", "-f", "-q", "-p", str(trainer.pid), "-o", "/dev/null", "-e", which]
        with subprocess.Popen(
            [*command, "-e", "inject=fsync,fdatasync:error=EIO"], stderr=subprocess.DEVNULL
        ) as tracer:
            self._pause(hold)
            tracer.terminate()
        return f"{trainer.job_id}-{trainer.epoch}"

    def _full_disk(self, rng: random.Random, hold: float) -> str:
        with self._only("disk"), disks.full(self._site):
            self._pause(hold)
        return "disk"


def _steps(trainer: Trainer) -> bool:
    return any(segment.stat().st_size > 500 for segment in trainer.folder.glob("spool/metrics-*.bin"))


async def _delete_stream(url: str, token: str, stream: str) -> None:
    if not url:
        raise TimeoutError
    async with asyncio.timeout(10):
        bus = await Bus.connect(url, token, "faults", ensure_streams=False)
        try:
            await bus.connection.api(f"STREAM.DELETE.{stream}")
        finally:
            await bus.close()
