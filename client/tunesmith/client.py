"""The way in: `Client` blocks, `AsyncClient` is awaited."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Self

from tunesmith.alerts import Alerts
from tunesmith.chat import Chat
from tunesmith.connection import Connection
from tunesmith.datasets import Datasets
from tunesmith.evaluations import Evaluations
from tunesmith.exports import Exports
from tunesmith.external import ExternalRuns
from tunesmith.faces import Async, Face, Handle, LoopThread, Sync
from tunesmith.jobs import Jobs
from tunesmith.metrics import Metrics
from tunesmith.models import Models
from tunesmith.nodes import Fleet, Nodes
from tunesmith.profile import Profile, resolve
from tunesmith.prompts import Prompts
from tunesmith.quotas import Quotas
from tunesmith.registry import Cards, Lineage, Search
from tunesmith.runs import Runs
from tunesmith.versions import Versions

# Long enough for a commit on a busy disk; imports set their own, by size.
TIMEOUT_SECONDS = 30.0


class _Client(Handle[Face]):
    """What both clients are: the connection, and a handle for each noun."""

    _core: Connection
    jobs: Jobs[Face]
    models: Models[Face]
    versions: Versions[Face]
    cards: Cards[Face]
    lineage: Lineage[Face]
    search: Search[Face]
    exports: Exports[Face]
    datasets: Datasets[Face]
    prompts: Prompts[Face]
    chat: Chat[Face]
    evaluations: Evaluations[Face]
    metrics: Metrics[Face]
    runs: Runs[Face]
    external: ExternalRuns[Face]
    alerts: Alerts[Face]
    nodes: Nodes[Face]
    quotas: Quotas[Face]
    fleet: Fleet[Face]

    def __init__(self, core: Connection) -> None:
        super().__init__(core)
        self.jobs = Jobs(core)
        self.models = Models(core)
        self.versions = Versions(core)
        self.cards = Cards(core)
        self.lineage = Lineage(core)
        self.search = Search(core)
        self.exports = Exports(core)
        self.datasets = Datasets(core)
        self.prompts = Prompts(core)
        self.chat = Chat(core)
        self.evaluations = Evaluations(core)
        self.metrics = Metrics(core)
        self.runs = Runs(core)
        self.external = ExternalRuns(core)
        self.alerts = Alerts(core)
        self.nodes = Nodes(core)
        self.quotas = Quotas(core)
        self.fleet = Fleet(core)

    @property
    def profile(self) -> Profile:
        """Address, token and project in force."""
        return self._core.profile


class Client(_Client[Sync]):
    """Client whose methods block. Any thread may use it; close it, or use it in a `with` statement.

    `address` is host:port of the gateway. What is not given comes from the environment
    (`TUNESMITH_ADDRESS`, `TUNESMITH_TOKEN`, `TUNESMITH_PROJECT`) or from a profile: the one named, that of
    `TUNESMITH_PROFILE` or `tunesmith profile use`, else the one `tunesmith up` wrote.
    `timeout` is the deadline of a single call in seconds. Raises Unauthenticated when no token is known.
    """

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        project: str | None = None,
        *,
        profile: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        loop = LoopThread()
        super().__init__(Connection(resolve(address, token, project, name=profile), timeout, loop))
        self._shut = weakref.finalize(self, loop.stop, self._core.close)

    def close(self) -> None:
        """Closes the connection and ends the client's thread. Harmless when repeated."""
        self._shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Client[Async]):
    """Client whose methods are awaited, on the one event loop it is first used on. Arguments as `Client`."""

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        project: str | None = None,
        *,
        profile: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(Connection(resolve(address, token, project, name=profile), timeout, None))

    async def close(self) -> None:
        """Closes the connection; streams under way end."""
        await self._core.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._core.close()
