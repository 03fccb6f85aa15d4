"""The thread that takes what a program records to the server, and says that the program lives."""

from __future__ import annotations

import os
import sys
import threading
import time

from tunesmith.errors import TunesmithError
from tunesmith.porter import Porter
from tunesmith.sending import PASSING, Sender
from tunesmith.spool import Spool

_RENEW_SECONDS = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


class Courier:
    """Sends a run's folder while its program runs.

    After a pause the first record leaves at once; then the server says how long to gather: shortly while
    somebody looks at the run, else longer, for each call costs it a commit.
    """

    def __init__(self, spool: Spool, profile: tuple[str, str, str], name: str) -> None:
        self._spool, self._profile = spool, profile
        self._fresh, self._stop = threading.Event(), threading.Event()
        self._renewed = float("-inf")
        self._warned = False
        self._porter: Porter | None = None
        self.name = name  # readable, once the server has been reached
        self.cancelled = False
        self._thread = threading.Thread(target=self._work, name="tunesmith-recording", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def tell(self) -> None:
        """Says that something was recorded."""
        if not self._fresh.is_set():
            self._fresh.set()

    def finish(self, seconds: float) -> None:
        """Sends what is left and ends the run, for as long as checkpoints move, and so many seconds more."""
        self._stop.set()
        self._fresh.set()
        asked = time.monotonic()
        while self._thread.is_alive():
            moved = max(asked, self._porter.moved if self._porter is not None else asked)
            rest = moved + seconds - time.monotonic()
            if rest <= 0:
                return
            self._thread.join(min(rest, 1.0))

    def _work(self) -> None:
        """Sends and renews until the run has ended and all is stored."""
        from tunesmith.client import Client

        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        with Client(*self._profile) as client:
            sender, pause = Sender(client, self._spool), _FIRST_PAUSE
            self._porter = Porter(sender, self._spool, self._warn)
            while True:
                ending = self._stop.is_set()
                self._fresh.clear()  # before reading: what is written from here on wakes us again
                try:
                    self._round(sender)
                    pause = sender.pause
                    if ending and self._end(sender):
                        return
                except PASSING as error:
                    self._warn(f"{error.message}; it goes on without the server")
                    pause = min(2 * max(pause, _FIRST_PAUSE), _LONGEST_PAUSE)
                except TunesmithError as error:
                    self._warn(f"{error.message}; its records stay in {self._spool.folder}", again=True)
                    return
                self._rest(pause, ending)

    def _round(self, sender: Sender) -> None:
        if not self._spool.sent.epoch:
            sender.begin()
            self._renewed = time.monotonic()
        self.name = (sender.job.display_name if sender.job is not None else "") or self.name
        self._renew(sender)  # first: records that are not taken do not mean that the program is gone
        assert self._porter is not None
        self._porter.look()
        while sender.send():
            self._renew(sender)
            if not sender.behind and not self._stop.is_set():
                return  # what was logged meanwhile is gathered, too

    def _renew(self, sender: Sender) -> None:
        if time.monotonic() - self._renewed >= _RENEW_SECONDS and not self._stop.is_set():
            sender.renew()
            self._renewed = time.monotonic()
            self.cancelled = sender.cancelled

    def _end(self, sender: Sender) -> bool:
        """Ends the run; tells whether there is nothing more to do."""
        if not self._spool.sent.ended:
            said = self._spool.sent.end or {}
            sender.finish(bool(said.get("failed")), str(said.get("message", "")))
        assert self._porter is not None
        if self._porter.look():
            return False
        if not self._spool.parcels.waiting():
            self._spool.remove()
        return True

    def _rest(self, pause: float, ending: bool) -> None:
        if ending:  # it tries on until `finish` waits no longer
            time.sleep(_FIRST_PAUSE)
        elif not self._stop.wait(pause):
            self._fresh.wait(max(0.0, self._renewed + _RENEW_SECONDS - time.monotonic()))

    def _warn(self, words: str, *, again: bool = False) -> None:
        if not self._warned or again:
            self._warned = True
            print(f"tunesmith: run {self.name}: {words}", file=sys.stderr)  # noqa: T201 - see `Recording`
