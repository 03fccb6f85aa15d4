"""What the trainer makes of rows, asked of processes of the trainer's package.

The registry imports nothing of it: a process is told a folder and rows and answers with lines of JSON, so
templates and tokenizers run where they can be ended. Without the package the rest of the registry works.
"""

import json
import logging
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.api.registry.v1 import prompts_pb2
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore

log = logging.getLogger(__name__)
_TEMPLATE, _RENDER = "tunesmith_trainer.template", "tunesmith_trainer.render"
_TEMPLATE_SECONDS = 30.0
_START_SECONDS = 180.0
_ANSWER_SECONDS = 120.0
_IDLE_SECONDS = 300.0
_MOST_WARM = 2
# Tokenizer, chat template and configuration; weights are not needed.
_WEIGHTS = (".safetensors", ".gguf")


class RenderingMissing(Exception):
    """Rows cannot be rendered here; the message says why."""


def run_template(
    parts: prompts_pb2.PromptParts, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Variables of a template, and what it makes of rows: `messages` or `error` each. Blocks.

    Raises:
        ValueError: the template itself cannot be read; the message says why.
        RenderingMissing: no process could be started for it.
    """
    asked = {"system": parts.system, "prompt": parts.prompt, "completion": parts.completion}
    text = json.dumps(asked) + "\n" + (json.dumps(list(rows)) + "\n" if rows else "")
    try:
        done = subprocess.run(
            [sys.executable, "-m", _TEMPLATE],
            input=text.encode(),
            capture_output=True,
            timeout=_TEMPLATE_SECONDS,
            check=False,
        )
        output = done.stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
    answers = [json.loads(line) for line in output.splitlines() if line.endswith(b"}")]
    if not answers:
        raise RenderingMissing("templates are rendered by the package tunesmith[trainer] or jinja2, not here")
    if "error" in answers[0]:
        raise ValueError(answers[0]["error"])
    lost = {"error": "it did not end in time, or used too much memory"}
    rendered = answers[1:] + [lost] * (len(rows) - len(answers) + 1)
    return list(answers[0]["variables"]), rendered


@dataclass(frozen=True, slots=True)
class View:
    """How rows are seen: manifests of base model and template (empty: none), and where they are cut."""

    base_digest: str
    template_digest: str
    max_length: int


class Renderers:
    """Warm processes that render rows, a few at most. Methods block: use a thread."""

    def __init__(self, store: BlobStore, cache: Path) -> None:
        self._store, self._cache = store, cache
        self._warm: OrderedDict[View, _Child] = OrderedDict()
        self._lock = threading.Lock()

    def render(self, view: View, rows: Sequence[Mapping[str, Any]], detail: bool) -> list[dict[str, Any]]:
        """What training makes of rows; raises `RenderingMissing` when it cannot be told here."""
        child = self._child(view)
        try:
            return child.ask(rows, detail)
        except RenderingMissing:
            self._drop(view)
            raise

    def _child(self, view: View) -> "_Child":
        with self._lock:
            child = self._warm.get(view)
            if child is None:
                while len(self._warm) >= _MOST_WARM:
                    _, old = self._warm.popitem(last=False)
                    threading.Thread(target=old.close, daemon=True).start()  # it may be at work still
                child = self._warm[view] = _Child(self._command(view))
            self._warm.move_to_end(view)
            return child

    def _command(self, view: View) -> list[str]:
        command = [sys.executable, "-m", _RENDER, "--model", str(self._folder(view.base_digest))]
        if view.template_digest:
            command += ["--template", str(self._folder(view.template_digest))]
        return [*command, "--max-length", str(view.max_length)]

    def _folder(self, digest: str) -> Path:
        """The small files of an artifact, fetched once."""
        folder = self._cache / digest
        if not (folder / ".complete").exists():
            for file in manifest.read(self._store, digest).files:
                if not file.path.endswith(_WEIGHTS):
                    target = folder / file.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._store.fetch(file.sha256, target)
            (folder / ".complete").touch()
        return folder

    def _drop(self, view: View) -> None:
        with self._lock:
            child = self._warm.pop(view, None)
        if child is not None:
            child.close()

    def cool(self) -> None:
        """Ends processes that were not asked for a while."""
        with self._lock:
            idle = [
                view
                for view, child in self._warm.items()
                if child.idle_since < time.monotonic() - _IDLE_SECONDS
            ]
        for view in idle:
            self._drop(view)

    def close(self) -> None:
        """Ends all processes."""
        for view in list(self._warm):
            self._drop(view)


class _Child:
    """One process; its questions are asked one after the other."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._lock = threading.Lock()
        self.idle_since = time.monotonic()

    def ask(self, rows: Sequence[Mapping[str, Any]], detail: bool) -> list[dict[str, Any]]:
        with self._lock:
            if self._process is None:
                self._start()
            assert self._process is not None, "started above"
            assert self._process.stdin is not None, "made with a pipe"
            try:
                line = json.dumps({"rows": list(rows), "detail": detail}).encode() + b"\n"
                self._process.stdin.write(line)
                self._process.stdin.flush()
            except OSError as error:
                raise RenderingMissing("the process that renders rows ended") from error
            answer = self._answer(_ANSWER_SECONDS)
            self.idle_since = time.monotonic()
            if not isinstance(answer, list):
                raise RenderingMissing("rendering did not end in time; look at the chat template")
            return answer

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        answer = self._answer(_START_SECONDS)
        if answer is None:
            raise RenderingMissing("tokens are counted by the package tunesmith[trainer], which is not here")
        if "error" in answer:
            raise RenderingMissing(f"the base model's tokenizer cannot be used: {answer['error']}")

    def _answer(self, seconds: float) -> Any:
        assert self._process is not None, "started before"
        assert self._process.stdout is not None, "made with a pipe"
        pipe = self._process.stdout
        while b"\n" not in self._buffer:
            if not select.select([pipe], [], [], seconds)[0]:
                return None
            data = pipe.read1(1 << 20)  # type: ignore[attr-defined]
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        process = self._process
        if process is None:
            return
        process.kill()
        with self._lock:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
