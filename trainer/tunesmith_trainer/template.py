"""Prompt templates: a row's columns become a conversation, in a process that can be ended.

A template is three texts in Jinja, `system`, `prompt` and `completion`, over the columns of a row; of a
conversation the variables are `messages`, `system`, `prompt` (what the user said last) and `completion` (the
last answer). It is rendered in a sandbox in a child process with a limit of memory and, for each
row, of time:

    python -m tunesmith_trainer.template

reads JSON lines, first the parts, then lists of rows, and answers each row with a line. The registry's
preview talks to the same child, so what it shows is what training reads.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tunesmith_trainer.failure import TrainerError, invalid_input

FILE = "template.json"
SECONDS = 2.0
MEMORY_BYTES = 512 * 1024 * 1024
MOST_CHARACTERS = 4_000_000
# What the child cannot interrupt itself, such as 10 ** 10 ** 10, the parent ends.
_GRACE_SECONDS = 3.0
_START_SECONDS = 60.0
_BATCH = 64

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Template:
    """The parts of a prompt template; an empty one is left out of the conversation."""

    system: str = ""
    prompt: str = ""
    completion: str = ""

    @staticmethod
    def load(folder: Path) -> Template:
        """Reads a template's folder. Raises INVALID_INPUT when it is none."""
        try:
            value = json.loads((folder / FILE).read_text(encoding="utf-8"))
            return Template(*(str(value.get(name) or "") for name in ("system", "prompt", "completion")))
        except (OSError, ValueError, AttributeError) as error:
            raise invalid_input(
                "TEMPLATE_INVALID", f"{folder / FILE} cannot be read: {error}", "use a matching agent"
            ) from error


def columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a template sees of a row: its columns; of a conversation also `system`, `prompt`, `completion`."""
    turns = row.get("messages")
    if not isinstance(turns, list):
        return dict(row)

    def first(role: str, among: Iterable[Message]) -> str:
        return next((turn["content"] for turn in among if turn.get("role") == role), "")

    found = {"system": first("system", turns), "prompt": first("user", reversed(turns))}
    return {**row, **found, "completion": first("assistant", reversed(turns)), "turns": len(turns)}


class Renderer:
    """Renders rows with a template in a child process; use it in a `with` statement.

    `variables` are the names the template reads, sorted.
    """

    def __init__(self, template: Template) -> None:
        self._template = template
        self._child: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self.variables: list[str] = []

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def render(self, row: Mapping[str, Any], place: str = "the row") -> list[Message]:
        """The conversation a row becomes. Raises INVALID_INPUT naming `place` when it cannot be rendered."""
        return next(self.render_all([(place, row)]))

    def render_all(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[list[Message]]:
        """The same for many rows, each with its place, in their order."""
        waiting: list[tuple[str, Mapping[str, Any]]] = []
        for item in rows:
            waiting.append(item)
            if len(waiting) == _BATCH:
                yield from self._some(waiting)
                waiting = []
        yield from self._some(waiting)

    def _some(self, rows: list[tuple[str, Mapping[str, Any]]]) -> Iterator[list[Message]]:
        if not rows:
            return
        self._send([columns(row) for _, row in rows])
        for place, _ in rows:
            answer = self._answer(SECONDS + _GRACE_SECONDS)
            if answer is None:
                self._stop()
                self._start()
                raise refused(place, f"it did not end within {SECONDS:g} s, or used too much memory")
            if "error" in answer:
                self._stop()  # answers to later rows of the batch are not wanted
                self._start()
                raise refused(place, answer["error"])
            yield answer["messages"]

    def _start(self) -> None:
        self._buffer = b""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tunesmith_trainer.template"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        parts = self._template
        self._send({"system": parts.system, "prompt": parts.prompt, "completion": parts.completion})
        answer = self._answer(_START_SECONDS)
        if answer is None or "error" in answer:
            self._stop()
            why = answer["error"] if answer else "the process that renders it does not start"
            raise refused("its text", why)
        self.variables = answer["variables"]

    def _send(self, value: object) -> None:
        assert self._child is not None, "used in a with statement"
        assert self._child.stdin is not None, "made with a pipe"
        try:
            self._child.stdin.write(json.dumps(value).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            return  # there will be no answer, which is told then

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        """The next line of the child; None when there is none in time."""
        assert self._child is not None, "used in a with statement"
        assert self._child.stdout is not None, "made with a pipe"
        pipe = self._child.stdout
        while b"\n" not in self._buffer:
            if not select.select([pipe], [], [], seconds)[0]:
                return None
            data = pipe.read1(1 << 20)  # type: ignore[attr-defined]
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue


def refused(place: str, why: str) -> TrainerError:
    """The error of a row that a template cannot render."""
    return invalid_input(
        "TEMPLATE_REFUSED",
        f"the prompt template cannot be rendered for {place}: {why}"[:500],
        "correct the template; `tunesmith prompts render` shows what it makes of rows",
    )


# What follows runs in the child.


def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    # The same row must always give the same text.
    made.filters.pop("random", None)
    made.globals.pop("lipsum", None)
    return made


def _conversation(parts: Mapping[str, Any], row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row; a conversation whose template has only a system part keeps its turns."""
    made = {name: part.render(row) for name, part in parts.items()}
    if sum(map(len, made.values())) > MOST_CHARACTERS:
        raise ValueError(f"it makes more than {MOST_CHARACTERS} characters")
    if "prompt" not in made and "completion" not in made and isinstance(row.get("messages"), list):
        kept = [turn for turn in row["messages"] if turn["role"] != "system" or "system" not in made]
        return [*_message("system", made), *kept]
    if "system" not in made and isinstance(row.get("messages"), list) and row.get("system"):
        made["system"] = row["system"]
    return [
        *_message("system", made),
        *_message("user", made, "prompt"),
        *_message("assistant", made, "completion"),
    ]


def _message(role: str, made: Mapping[str, str], name: str = "") -> list[Message]:
    text = made.get(name or role, "")
    return [{"role": role, "content": text}] if (name or role) in made and (text or role != "system") else []


def _compile(parts: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    from jinja2 import meta

    made, compiled, variables = _environment(), {}, set()
    for name in ("system", "prompt", "completion"):
        if text := parts.get(name):
            variables |= meta.find_undeclared_variables(made.parse(text))
            compiled[name] = made.from_string(text)
    if not compiled:
        raise ValueError("it has no part")
    return compiled, sorted(variables - set(made.globals))


def _limit() -> None:
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def late(*_: object) -> None:
        raise TimeoutError(f"it did not end within {SECONDS:g} s")

    signal.signal(signal.SIGALRM, late)


def _timed(work: Any) -> dict[str, Any]:
    import signal

    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        answer: dict[str, Any] = work()
        return answer
    except MemoryError:
        return {"error": f"it needs more than {MEMORY_BYTES >> 20} MiB"}
    except Exception as error:  # a template raises what it likes
        return {"error": f"{type(error).__name__}: {error}"[:400]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Answers lines until stdin ends."""
    import jinja2.ext
    import jinja2.meta
    import jinja2.sandbox  # noqa: F401  imported before memory is limited

    _limit()
    parts: dict[str, Any] = {}
    for number, line in enumerate(sys.stdin.buffer):
        value = json.loads(line)
        if number == 0:
            found: list[str] = []

            def begin(value: Any = value, found: list[str] = found) -> dict[str, Any]:
                compiled, variables = _compile(value)
                parts.update(compiled)
                found += variables
                return {"variables": found}

            answers = [_timed(begin)]
        else:
            answers = (_timed(lambda row=row: {"messages": _conversation(parts, row)}) for row in value)  # type: ignore[assignment]
        for answer in answers:
            sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
