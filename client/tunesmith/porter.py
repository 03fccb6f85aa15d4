"""Delivers the checkpoints of a run beside its records, so that a long upload holds nothing else up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tunesmith.errors import TunesmithError
from tunesmith.parcel import Parcel
from tunesmith.sending import PASSING, Sender
from tunesmith.spool import Spool

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


class Porter:
    """A thread that ends when nothing waits; `look` begins another when something does."""

    def __init__(self, sender: Sender, spool: Spool, warn: Callable[..., None]) -> None:
        self._sender, self._spool, self._warn = sender, spool, warn
        self._thread: threading.Thread | None = None
        self.moved = time.monotonic()  # when bytes last left
        self.gave_up = False

    def look(self) -> bool:
        """Sees to it that what waits is delivered; tells whether anything does."""
        busy = self._thread is not None and self._thread.is_alive()
        if not busy and not self.gave_up and self._spool.parcels.waiting():
            self._thread = threading.Thread(target=self._work, name="tunesmith-checkpoints", daemon=True)
            self._thread.start()
            busy = True
        return busy

    def _work(self) -> None:
        pause = _FIRST_PAUSE
        while (waiting := self._spool.parcels.waiting()) and not self.gave_up:
            try:
                self._sender.deliver(Parcel.open(waiting[0]), self._note)
                pause = _FIRST_PAUSE
            except TunesmithError as error:
                if isinstance(error, PASSING) and error.reason != "UPLOAD_TOO_LARGE":
                    self._warn(f"{error.message}; its checkpoints wait")
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                else:
                    self.gave_up = True
                    self._warn(f"{error.message}; its checkpoints stay in {self._spool.folder}", again=True)

    def _note(self, done: int, total: int) -> None:
        self.moved = time.monotonic()
