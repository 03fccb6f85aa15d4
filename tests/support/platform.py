"""The platform for tests: in one process (`tunesmith up`) or as many (a process a service, PostgreSQL, three
NATS servers), behind the same few words, so that a system test runs on both."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.leftovers import end_trainers
from tests.support.network import Namespace
from tests.support.postgres import Postgres
from tests.support.processes import BIN, Process, clean_environment, free_port, wait_for
from tunesmith import Client

CACHE = Path(os.environ.get("TUNESMITH_TEST_CACHE", Path.home() / ".cache" / "tunesmith-tests"))


def tiny_model() -> Path:
    """Returns the folder of the tiny model, made once."""
    folder = CACHE / "tiny"
    if not (folder / "config.json").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = CACHE / f"tiny.{os.getpid()}"
        subprocess.run(
            [sys.executable, "-m", "tunesmith_trainer.tiny", "--out", str(partial)], check=True, timeout=400
        )
        if folder.exists():
            shutil.rmtree(partial)
        else:
            partial.rename(folder)
    return folder


def dialogues(path: Path, num_rows: int = 48) -> Path:
    """Writes a small conversation dataset and returns its path."""
    rows = (
        {
            "messages": [
                {"role": "user", "content": f"what is {i} plus {i}?"},
                {"role": "assistant", "content": f"{2 * i}"},
            ]
        }
        for i in range(num_rows)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Platform:
    """A running platform with its addresses, its token and its processes by name."""

    def __init__(
        self, root: Path, address: str, http: str, token: str, processes: Mapping[str, Process]
    ) -> None:
        self.root, self.address, self.http, self.token, self.processes = root, address, http, token, processes
        self.nats_url = ""
        self.nats_token = ""

    def client(self) -> Client:
        """Returns a client with the admin token."""
        return Client(address=self.address, token=self.token)

    def rest(self) -> httpx.Client:
        """Returns an HTTP client with the admin token."""
        return httpx.Client(
            base_url=self.http,
            headers={"authorization": f"Bearer {self.token}"},
            timeout=120,
            trust_env=False,
        )

    def run(self, *arguments: str, seconds: float = 180) -> subprocess.CompletedProcess[str]:
        """Runs the command line against this platform."""
        env = {
            "TUNESMITH_ADDRESS": self.address,
            "TUNESMITH_TOKEN": self.token,
            "TUNESMITH_CONFIG_DIR": str(self.root),
        }
        return subprocess.run(
            [str(BIN / "tunesmith"), *arguments],
            env=clean_environment(env),
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def load_inputs(self) -> None:
        """Brings the tiny model (`tiny`) and a dataset (`sums`) in."""
        with self.client() as client:
            client.models.import_base(tiny_model(), "tiny")
            client.datasets.import_file(dialogues(self.root / "sums.jsonl"), "sums")


@contextmanager
def embedded(
    root: Path, env: Mapping[str, str] | None = None, ports: tuple[int, int] = (0, 0)
) -> Iterator[Platform]:
    """Starts `tunesmith up` in a child process. `ports` (HTTP, gRPC): kept when it is started again."""
    settings = {"TUNESMITH_CONFIG_DIR": str(root / "config"), **(env or {})}
    command = [
        str(BIN / "tunesmith"),
        "up",
        "--data-dir",
        str(root / "data"),
        "--port",
        str(ports[0]),
        "--grpc-port",
        str(ports[1]),
    ]
    (root / "config" / "profile.json").unlink(missing_ok=True)  # an earlier platform's, killed by the test
    process = Process("up", command, root / "up.log", settings)
    try:
        yield _embedded(root, process)
    finally:
        ours = process.alive()  # a test that ended it itself wants to see what its trainers do then
        process.stop()
        if ours:
            end_trainers(root)


def _embedded(root: Path, process: Process) -> Platform:
    profile = root / "config" / "profile.json"

    def up() -> dict[str, str] | None:
        assert process.alive(), process.tail()
        return json.loads(profile.read_text()) if profile.exists() else None

    known = wait_for(up, 120, "the platform is up")
    platform = Platform(root, known["address"], known["http"], known["token"], {"up": process})
    platform.nats_token = json.loads((root / "data" / "secrets.json").read_text())["nats_token"]
    return platform


class Distributed:
    """Starts what docker-compose.yml describes, without containers.

    Args:
        env: added to the environment of every process.
        wires: a node's own way to (NATS addresses, gateway address), for example through proxies.
        namespaces: the networks of nodes that have one of their own.
    """

    def __init__(
        self,
        root: Path,
        postgres: Postgres,
        num_nats: int = 3,
        nodes: tuple[str, ...] = ("node-a", "node-b"),
        env: Mapping[str, str] | None = None,
        wires: Callable[[str, str, str], tuple[str, str]] = lambda node, nats, gateway: (nats, gateway),
        namespaces: Mapping[str, Namespace] | None = None,
    ):
        self._root, self._postgres, self._num_nats, self._nodes = root, postgres, num_nats, nodes
        self._env, self._wires, self._namespaces = dict(env or {}), wires, namespaces or {}
        self._tokens = {name: secrets.token_urlsafe(16) for name in ("nats", "internal", "admin", "node")}
        names = ("jobs", "registry", "metrics", "gateway", "web", "jobs_http", "gateway_http")
        self._ports = {name: free_port() for name in names}
        self.processes: dict[str, Process] = {}

    @contextmanager
    def run(self) -> Iterator[Platform]:
        """Starts everything, waits until it is ready, and ends it."""
        try:
            nats_url = self._start_nats()
            for service in ("registry", "metrics", "jobs", "gateway"):
                self._start(service, service, nats_url)
            for node in self._nodes:
                self._start("agent", node, nats_url)
            platform = Platform(
                self._root,
                f"127.0.0.1:{self._ports['gateway']}",
                f"http://127.0.0.1:{self._ports['web']}",
                self._tokens["admin"],
                self.processes,
            )
            platform.nats_url, platform.nats_token = nats_url, self._tokens["nats"]
            wait_for(lambda: self._ready(platform), 240, "every service and both agents are ready")
            yield platform
        finally:
            for process in reversed(list(self.processes.values())):
                if process.alive():
                    process.stop()
            end_trainers(self._root)

    def _ready(self, platform: Platform) -> bool:
        for process in self.processes.values():
            assert process.alive(), f"{process.name} died:\n{process.tail()}"
        try:
            with platform.rest() as rest:
                if rest.get("/readyz").status_code != httpx.codes.OK:
                    return False
                fleet = rest.get("/api/v1/fleet").json()
        except httpx.HTTPError:
            return False
        return len(fleet.get("nodes", [])) == len(self._nodes)

    def _start_nats(self) -> str:
        from tunesmith_kit.nats_server import find_binary

        ports = [(free_port(), free_port()) for _ in range(self._num_nats)]
        routes = ", ".join(f'"nats://127.0.0.1:{cluster}"' for _, cluster in ports)
        for number, (port, cluster) in enumerate(ports):
            folder = self._root / f"nats-{number}"
            folder.mkdir()
            config = folder / "nats.conf"
            config.write_text(
                f'server_name: n{number}\nlisten: "127.0.0.1:{port}"\nmax_payload: 1MB\n'
                f'authorization {{ token: "{self._tokens["nats"]}" }}\n'
                f'jetstream {{ store_dir: "{folder}/data", max_file: 5GB, sync_interval: always }}\n'
                + (
                    # A client must not learn of ways round the addresses it was given.
                    f'cluster {{ name: test, listen: "127.0.0.1:{cluster}", routes: [{routes}], '
                    "no_advertise: true }\n"
                    if self._num_nats > 1
                    else ""
                )
            )
            name = f"nats-{number}"
            command = [str(find_binary()), "-c", str(config)]
            self.processes[name] = Process(name, command, self._root / f"{name}.log", {})
        return ",".join(f"nats://127.0.0.1:{port}" for port, _ in ports)

    def _start(self, service: str, name: str, nats_url: str) -> None:
        env = {
            "TUNESMITH_DATA_DIR": str(self._root / "data" / name),
            "TUNESMITH_BLOBS_URL": str(self._root / "blobs"),
            "TUNESMITH_DATABASE_URL": self._postgres.url,
            "TUNESMITH_NATS_URL": nats_url,
            "TUNESMITH_NATS_TOKEN": self._tokens["nats"],
            "TUNESMITH_NUM_REPLICAS": str(self._num_nats),
            "TUNESMITH_INTERNAL_TOKEN": self._tokens["internal"],
            "TUNESMITH_LOG_LEVEL": "warning",
            **self._env,
        }
        if service == "agent":
            gateway = f"127.0.0.1:{self._ports['gateway']}"
            env["TUNESMITH_NATS_URL"], gateway = self._wires(name, nats_url, gateway)
            env |= {
                "TUNESMITH_AGENT_NODE": name,
                "TUNESMITH_AGENT_TOKEN": self._tokens["node"],
                "TUNESMITH_AGENT_GATEWAY_ADDRESS": gateway,
            }
        else:
            env[f"TUNESMITH_{service.upper()}_PORT"] = str(self._ports[service])
        if service == "gateway":
            env |= {
                "TUNESMITH_GATEWAY_WEB_PORT": str(self._ports["web"]),
                "TUNESMITH_GATEWAY_ADMIN_TOKEN": self._tokens["admin"],
                "TUNESMITH_GATEWAY_NODE_TOKEN": self._tokens["node"],
                **{
                    f"TUNESMITH_GATEWAY_{other.upper()}_ADDRESS": f"127.0.0.1:{self._ports[other]}"
                    for other in ("jobs", "registry", "metrics")
                },
            }
        command = [str(BIN / "tunesmith"), "serve", service]
        if name in self._namespaces:
            command = [*self._namespaces[name].enter, *command]
            env["TUNESMITH_AGENT_ADDRESS"] = self._namespaces[name].address
        self.processes[name] = Process(name, command, self._root / f"{name}.log", env)
