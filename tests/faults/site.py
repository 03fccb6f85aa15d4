"""The platform under faults, the same words for both of its forms: its processes, nodes, trainers and bus."""

import contextlib
import json
import os
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support import postgres
from tests.support.network import Network, network, why_no_namespaces
from tests.support.platform import Distributed, Platform, embedded
from tests.support.postgres import Postgres
from tests.support.processes import Process, free_port
from tests.support.proxy import Proxy
from tunesmith_agent.process import start_ticks

MARK = "FAULTS_MARK"  # in the environment of all we start and of all they start: so we know our orphans
MODES = ("embedded", "distributed")
NODES = ("node-a", "node-b")


@dataclass(frozen=True)
class Trainer:
    """The living ranks of an attempt on one node, as its agent's notes name them; `pid` is the first's."""

    pids: tuple[int, ...]
    job_id: str
    epoch: int
    folder: Path

    @property
    def pid(self) -> int:
        """Process id, and group, of the first rank that lives."""
        return self.pids[0]


class Site:
    """A running platform with everything faults need to know of it."""

    def __init__(
        self,
        mode: str,
        platform: Platform,
        mark: str,
        database: Postgres | None = None,
        wires: dict[str, list[Proxy]] | None = None,
        network: Network | None = None,
    ) -> None:
        self.mode, self.platform, self.mark, self.database = mode, platform, mark, database
        self.wires, self.network = wires or {}, network

    @property
    def processes(self) -> dict[str, Process]:
        """The processes we started, by name."""
        return dict(self.platform.processes)

    def homes(self) -> list[Path]:
        """The folder of each node: `runs` and `cache` lie there."""
        pattern = "data/nodes/*" if self.mode == "embedded" else "data/*/nodes/*"
        return sorted(self.platform.root.glob(pattern))

    def trainers(self) -> list[Trainer]:
        """The trainers that run now, in the order of their jobs; an attempt on two nodes is two of them."""
        found = []
        for notes in (path for home in self.homes() for path in home.glob("runs/*/agent.json")):
            with contextlib.suppress(OSError, ValueError):
                known = json.loads(notes.read_text())
                ranks = [[known["pid"], known["start_ticks"]], *known["peers"]]
                living = tuple(pid for pid, ticks in ranks if pid and start_ticks(pid) == ticks)
                if living:
                    job_id = known["job"].rpartition("/")[2]
                    found.append(Trainer(living, job_id, known["epoch"], notes.parent))
        return sorted(found, key=lambda trainer: (trainer.job_id, trainer.epoch, trainer.folder))

    def nats_pid(self) -> int | None:
        """Pid of the nats-server that `tunesmith up` started."""
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.processes["up"].pid).children()
            return next((child.pid for child in children if child.name() == "nats-server"), None)
        return None

    def bus(self) -> tuple[str, str]:
        """Addresses and token of the bus as it runs now; empty while it does not."""
        if self.mode == "distributed":
            return self.platform.nats_url, self.platform.nats_token
        for path in (self.platform.root / "data" / "nats").glob("*.ports"):
            with contextlib.suppress(OSError, ValueError):
                return str(json.loads(path.read_text())["nats"][0]), self.platform.nats_token
        return "", ""

    def database_url(self, service: str) -> str:
        """Where a service keeps its rows."""
        if self.database is not None:
            return self.database.url
        return f"sqlite:///{self.platform.root / 'data' / service}.db"

    def blobs(self) -> Path:
        """The folder of the blob store."""
        return self.platform.root / ("data/blobs" if self.mode == "embedded" else "blobs")

    def marked(self) -> list[psutil.Process]:
        """Every living process that this site brought into being."""
        wanted, found = f"{MARK}={self.mark}".encode(), []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if wanted in environment and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@contextlib.contextmanager
def running(mode: str, root: Path, slots: int = 2) -> Iterator[Site]:
    """Starts a platform of either form and ends all that came of it, whatever state faults left it in."""
    mark = secrets.token_hex(8)
    site: Site | None = None
    try:
        form = _embedded if mode == "embedded" else _distributed
        with form(root, {MARK: mark, "TUNESMITH_AGENT_SLOTS": str(slots)}, mark) as site:
            yield site
    finally:
        if site is not None:
            for process in site.marked():
                with contextlib.suppress(psutil.Error):
                    process.kill()


@contextlib.contextmanager
def _embedded(root: Path, env: dict[str, str], mark: str) -> Iterator[Site]:
    root.mkdir(parents=True, exist_ok=True)
    with embedded(root, env, ports=(free_port(), free_port())) as platform:
        yield Site("embedded", platform, mark)


@contextlib.contextmanager
def _distributed(root: Path, env: dict[str, str], mark: str) -> Iterator[Site]:
    root.mkdir(parents=True, exist_ok=True)
    wires: dict[str, list[Proxy]] = {}
    with contextlib.ExitStack() as stack:
        # Where the machine allows, each node has a network of its own, as on machines of their own.
        net = None if why_no_namespaces() else stack.enter_context(network(NODES))
        own = net.address if net is not None else "127.0.0.1"

        def through(node: str, nats: str, gateway: str) -> tuple[str, str]:
            targets = [url.removeprefix("nats://") for url in nats.split(",")] + [gateway]
            split = (target.partition(":") for target in targets)
            wires[node] = [Proxy(host, int(port), own) for host, _, port in split]
            urls = [proxy.address for proxy in wires[node]]
            return ",".join(f"nats://{url}" for url in urls[:-1]), urls[-1]

        database = stack.enter_context(postgres.running())
        namespaces = net.nodes if net is not None else None
        distributed = Distributed(root, database, nodes=NODES, env=env, wires=through, namespaces=namespaces)
        stack.callback(_close, wires)
        yield Site("distributed", stack.enter_context(distributed.run()), mark, database, wires, net)


def _close(wires: dict[str, list[Proxy]]) -> None:
    for proxy in (proxy for proxies in wires.values() for proxy in proxies):
        proxy.close()


def stop_signal(pid: int, on: bool) -> None:
    """SIGSTOP or SIGCONT to a process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP if on else signal.SIGCONT)
