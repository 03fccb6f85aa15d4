"""Puts alerts together: the engine, the sender, what is heard and what is served."""

from tunesmith_kit.bus import Bus, Consumer
from tunesmith_kit.clock import SystemClock
from tunesmith_kit.db import Database
from tunesmith_kit.tasks import Tasks
from tunesmith_kit.watch import CommitSignal
from tunesmith_metrics.alerts.engine import Engine
from tunesmith_metrics.alerts.history import History
from tunesmith_metrics.alerts.sender import Sender
from tunesmith_metrics.alerts.service import AlertService


class Alerts:
    """Everything about alerts in this process. `private`: webhooks may go to private addresses."""

    def __init__(self, db: Database, signal: CommitSignal, private: bool) -> None:
        clock = SystemClock()
        self._history = History(db)
        self._engine = Engine(db, signal, clock)
        self._sender = Sender(db, signal, clock, private)
        self._consumer: Consumer | None = None
        self.service = AlertService(db, signal, clock, self._engine, self._sender, private)

    async def start(self, bus: Bus, tasks: Tasks) -> None:
        """Begins to hear, to judge and to tell."""
        self._consumer = await self._history.start(bus)
        tasks.spawn("alert engine", self._engine.run)
        tasks.spawn("alert sender", self._sender.run)

    async def stop(self) -> None:
        """Hears no more; the loops end with their tasks."""
        if self._consumer is not None:
            await self._consumer.stop()
        self._sender.close()
