"""Runs services: one alone (`serve`), or the whole platform in one process (`up`)."""

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import uvloop

from tunesmith.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, TunesmithError
from tunesmith_kit.health import HttpServer, health_app
from tunesmith_kit.nats_server import EmbeddedNats
from tunesmith_kit.pauses import short_pauses
from tunesmith_kit.settings import ServiceSettings, load
from tunesmith_kit.spans import Recorder
from tunesmith_kit.tasks import Tasks
from tunesmith_kit.telemetry import Telemetry, setup

log = logging.getLogger(__name__)
ENTRY_POINTS = "tunesmith.services"
EMBEDDED = ("registry", "metrics", "jobs", "gateway", "agent")  # each finds those before it


async def _always_ready() -> str:
    return ""


@dataclass
class Running:
    """A started service. `stop` drains it; `ready` returns what it still waits for, or nothing."""

    address: str
    stop: Callable[[], Awaitable[None]]
    ready: Callable[[], Awaitable[str]] = _always_ready
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServiceSpec:
    """How a service is started; each service's `main.py` exports one as `service`."""

    name: str
    settings: type[ServiceSettings]
    build: Callable[[Any, Telemetry], Awaitable[Running]]


def find_service(name: str) -> ServiceSpec:
    """Returns the installed service of this name."""
    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        raise InvalidArgument(
            "SETTING_INVALID", f"there is no service {name}", field="service", value=name,
            remedy=f"choose one of {', '.join(sorted(found))}",
        )  # fmt: skip
    spec: ServiceSpec = found[name].load()
    return spec


async def start(name: str, overrides: Mapping[str, object]) -> Running:
    """Starts one service with settings from `overrides` and the environment."""
    spec = find_service(name)
    settings = load(spec.settings, name, overrides)
    _make_folder(settings.data_dir)
    telemetry = setup(
        name,
        otlp_endpoint=settings.otlp_endpoint,
        log_format=settings.log_format,
        log_level=settings.log_level,
        recorder=Recorder() if settings.traces else None,
    )
    running = await spec.build(settings, telemetry)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, telemetry.shutdown)  # last: stopping has spans too
        if settings.http_port >= 0:
            http = HttpServer(health_app(running.ready))
            stack.push_async_callback(http.stop)
        stack.push_async_callback(running.stop)
        if settings.http_port >= 0:
            await http.start(settings.host, settings.http_port)
        running.stop = stack.pop_all().aclose
    return running


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidArgument(
            "SETTING_INVALID", f"the data folder cannot be made: {error.strerror}", field="data_dir",
            value=path, remedy="give a folder that you may write, with --data-dir or TUNESMITH_DATA_DIR",
        ) from None  # fmt: skip


def serve(name: str) -> int:
    """Runs one service until SIGTERM or SIGINT. Returns the exit code."""

    async def run() -> None:
        running = await start(name, {})
        log.info("service ready", extra={"service": name, "address": running.address})
        await stop_signal()
        await running.stop()

    return run_to_end(run)


def run_to_end(run: Callable[[], Awaitable[None]]) -> int:
    """Runs a coroutine on uvloop and returns exit code 0; what it raises is for the caller to print."""

    async def with_short_pauses() -> None:
        async with short_pauses():
            await run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(with_short_pauses())
    return 0


async def stop_signal() -> None:
    """Returns when the process is asked to end."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    await asked.wait()


@dataclass(frozen=True)
class Platform:
    """A running embedded platform. `first_start`: its secrets were made just now."""

    first_start: bool
    http_address: str
    grpc_address: str
    admin_token: str
    nats_url: str
    nats_token: str
    services: Mapping[str, Running]


def _secrets(data_dir: Path) -> tuple[dict[str, str], bool]:
    """Returns the platform's own secrets, readable by the owner only, and whether they were made now."""
    path = data_dir / "secrets.json"
    first_start = not path.exists()
    if first_start:
        names = {"nats_token": "nats", "internal_token": "svc", "admin_token": "ts", "node_token": "tsn"}
        made = {name: f"{prefix}_{secrets.token_urlsafe(32)}" for name, prefix in names.items()}
        temporary = path.with_suffix(".tmp")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(made))
        temporary.rename(path)
    stored: dict[str, str] = json.loads(path.read_text())
    return stored, first_start


@contextlib.contextmanager
def _lock(data_dir: Path) -> Any:
    _make_folder(data_dir)
    with (data_dir / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                "STATE_CONFLICT", f"another platform runs in {data_dir}", field="data_dir", value=data_dir,
                remedy="stop it first, or give --data-dir another folder",
            ) from None  # fmt: skip
        yield


@contextlib.contextmanager
def _room(data_dir: Path) -> Iterator[None]:
    """Names the disk that is too full to start on; what then runs waits for room by itself."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceExhausted(
            "DISK_FULL", f"the disk is full: {data_dir}", field="data_dir", value=data_dir,
            remedy="free some space, then start it again; nothing is lost",
        ) from error  # fmt: skip


@contextlib.asynccontextmanager
async def platform(
    data_dir: Path,
    http_port: int = 0,
    grpc_port: int = 0,
    with_agent: bool = True,
    overrides: Mapping[str, Mapping[str, object]] | None = None,
) -> AsyncIterator[Platform]:
    """The whole platform in this process: nats-server as a child, SQLite, every service, one agent."""
    with _lock(data_dir):
        with _room(data_dir):
            known, first_start = _secrets(data_dir)
            nats = EmbeddedNats(data_dir / "nats", token=known["nats_token"])
            await nats.start()
        tasks = Tasks()
        tasks.spawn("nats-server", nats.keep)
        shared: dict[str, object] = {
            "data_dir": data_dir,
            "nats_url": nats.url,
            "nats_token": known["nats_token"],
            "internal_token": known["internal_token"],
            "log_format": os.environ.get("TUNESMITH_LOG_FORMAT", "text"),
            "log_level": os.environ.get("TUNESMITH_LOG_LEVEL", "warning"),
        }
        running: dict[str, Running] = {}
        try:
            for name in EMBEDDED if with_agent else EMBEDDED[:-1]:
                own = {
                    **shared,
                    **_own(name, known, running, http_port, grpc_port),
                    **(overrides or {}).get(name, {}),
                }
                with _room(data_dir):
                    running[name] = await start(name, own)
            gateway = running["gateway"]
            yield Platform(
                first_start,
                gateway.facts["http_address"],
                gateway.address,
                known["admin_token"],
                nats.url,
                known["nats_token"],
                running,
            )
        finally:
            for service in reversed(running.values()):
                await service.stop()
            await tasks.stop()
            await nats.stop()


def _own(
    name: str, known: Mapping[str, str], running: Mapping[str, Running], http_port: int, grpc_port: int
) -> dict[str, object]:
    if name == "gateway":
        addresses = {f"{other}_address": running[other].address for other in ("jobs", "registry", "metrics")}
        tokens = {"admin_token": known["admin_token"], "node_token": known["node_token"]}
        return {**addresses, **tokens, "port": grpc_port, "web_port": http_port, "http_port": -1}
    if name == "agent":
        return {"gateway_address": running["gateway"].address, "token": known["node_token"]}
    return {"http_port": -1}


def up(
    data_dir: Path, http_port: int, grpc_port: int, with_agent: bool, ready: Callable[[Platform], None]
) -> int:
    """Runs the embedded platform until SIGTERM or SIGINT; calls `ready` once it serves."""

    async def run() -> None:
        async with platform(data_dir, http_port, grpc_port, with_agent) as running:
            ready(running)
            await stop_signal()

    return run_to_end(run)


__all__ = ["Platform", "Running", "ServiceSpec", "TunesmithError", "platform", "serve", "up"]
