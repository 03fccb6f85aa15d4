"""Entry of a chat worker: one base model, answers token by token over standard input and output.

`python -m tunesmith_trainer.serve --model FOLDER`. A line in is a JSON object with `do`: `answer` or `stop`;
a line out is one with `event`. Rendering a template is announced, so that whoever started this can end a
worker whose template does not end. It ends when its input does.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tunesmith_trainer.adapters import Swap
    from tunesmith_trainer.failure import Failure
    from tunesmith_trainer.generation import Answer

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

TEMPLATE_SECONDS = 2.0
_FLUSH_SECONDS = 0.02
_TURN_SECONDS = 0.06  # how long one answer goes on before the next has its turn


def main(arguments: Sequence[str] | None = None) -> int:
    """Loads the model, then answers until the input ends; gives the exit code."""
    parser = argparse.ArgumentParser(prog="tunesmith_trainer.serve", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base or full model")
    parser.add_argument(
        "--digest", default="", help="digest of that folder; empty: whatever its manifest says"
    )
    parser.add_argument("--checkpoint", type=Path, help="checkpoint of a full fine-tuning to lay over it")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0: its own choice")
    parser.add_argument("--adapters", type=int, default=4, help="adapters kept in memory")
    parser.add_argument("--nice", type=int, default=0, help="how far training comes first, 0 to 19")
    options = parser.parse_args(arguments)
    os.nice(options.nice)
    out = _own_output()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    say = Voice(out)
    began = time.perf_counter()
    try:
        swap = _load(options)
    except BaseException as error:
        say.failed("", error)
        return 70
    say("ready", seconds=time.perf_counter() - began)
    Desk(swap, say, lines).work()
    return 0


def _own_output() -> TextIO:
    """What libraries print goes to the log; the pipe is ours alone."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _read(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # whoever started this is gone; nobody hears the answers


def _load(options: argparse.Namespace) -> Swap:
    import torch

    from tunesmith_trainer import adapters

    warnings.simplefilter("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    # The processor computes 16 bits slower than 32, and the answers are those of the trainer's own samples.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    adapters.verify(options.model, options.digest)
    if options.checkpoint is not None:
        adapters.verify(options.checkpoint, options.checkpoint.name)
        return adapters.load_full(options.model, options.checkpoint, device, dtype)
    return adapters.load(options.model, device, dtype, options.adapters)


class Voice:
    """Writes events, a line each."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, event: str, **fields: object) -> None:
        self._out.write(json.dumps({"event": event, **fields}) + "\n")
        self._out.flush()

    def failed(self, task: str, error: BaseException) -> None:
        """Tells how an answer, or with an empty `task` the load, failed."""
        failure = _failure(error)
        if failure.reason in ("EXCEPTION", "OUT_OF_MEMORY"):
            traceback.print_exception(error)
        self("failed", task=task, reason=failure.reason, message=failure.message, remedy=failure.remedy)


def _failure(error: BaseException) -> Failure:
    from tunesmith_trainer.failure import classify

    return classify(error)


class EndlessError(BaseException):
    """A template took too long. Not an Exception: nothing on the way may catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises EndlessError in the block after some seconds, in the main thread, wherever Python code runs."""

    def ring(signum: int, frame: object) -> None:
        raise EndlessError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Work:
    """An answer under way with the adapter it needs and the text that was not sent yet."""

    def __init__(
        self, task: str, digest: str, folder: Path | None, answer: Answer, load_seconds: float
    ) -> None:
        self.task, self.digest, self.folder, self.answer = task, digest, folder, answer
        self.load_seconds = load_seconds
        self.text = ""
        self.sent = 0.0


class Desk:
    """Takes requests between two tokens, and lets the answers under way go on in turn."""

    def __init__(self, swap: Swap, say: Voice, lines: queue.SimpleQueue[str]) -> None:
        self._swap, self._say, self._lines = swap, say, lines
        self._works: deque[Work] = deque()

    def work(self) -> None:
        """Never returns; the end of the input ends the process."""
        while True:
            self._hear(wait=not self._works)
            if self._works:
                work = self._works.popleft()
                if self._go_on(work):
                    self._works.append(work)

    def _hear(self, wait: bool) -> None:
        while wait or not self._lines.empty():
            request = json.loads(self._lines.get())
            wait = False
            if request["do"] == "stop":
                self._works = deque(work for work in self._works if work.task != request["task"])
            else:
                self._begin(request)

    def _begin(self, request: Mapping[str, Any]) -> None:
        from tunesmith_trainer.adapters import verify
        from tunesmith_trainer.generation import Answer, Parameters

        task, digest = request["task"], request.get("digest", "")
        folder = Path(request["folder"]) if request.get("folder") else None
        try:
            prompt = self._render(task, request)
            began = time.perf_counter()
            if folder is not None and digest not in self._swap.loaded:
                verify(folder, digest)
            self._swap.use(digest, folder)
            loaded = time.perf_counter() - began
            chosen = dict(request.get("parameters") or {})
            chosen["stop"] = tuple(chosen.get("stop", ()))
            swap = self._swap
            answer = Answer(swap.causal, swap.tokenizer, prompt, Parameters(**chosen), swap.device)
        except Exception as error:
            self._say.failed(task, error)
            return
        self._works.append(Work(task, digest, folder, answer, loaded))

    def _render(self, task: str, request: Mapping[str, Any]) -> str:
        messages = request["messages"]
        if request.get("prompt_parts"):
            messages = templated(request["prompt_parts"], messages)
        self._say("rendering", task=task)
        try:
            with time_limit(TEMPLATE_SECONDS):
                return render(self._swap.tokenizer, messages)
        except EndlessError:
            raise _endless() from None
        finally:
            self._say("rendered", task=task)

    def _go_on(self, work: Work) -> bool:
        """Lets an answer have its turn; whether it needs another."""
        try:
            self._swap.use(work.digest, work.folder)
            until = time.perf_counter() + _TURN_SECONDS
            while not work.answer.finish and self._lines.empty():
                work.text += work.answer.step()
                now = time.perf_counter()
                if work.text and now - work.sent >= _FLUSH_SECONDS:
                    self._say("text", task=work.task, text=work.text)
                    work.text, work.sent = "", now
                if now >= until and self._works:
                    break
        except Exception as error:
            self._say.failed(work.task, error)
            return False
        if not work.answer.finish:
            return True
        self._finish(work)
        return False

    def _finish(self, work: Work) -> None:
        answer = work.answer
        self._say(
            "done",
            task=work.task,
            text=work.text,
            finish=answer.finish,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            load_seconds=work.load_seconds,
            first_token_seconds=answer.first_token_seconds,
            tokens_per_second=answer.tokens_per_second,
        )


def templated(parts: Mapping[str, str], messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """A conversation whose user's messages a prompt template makes, each as training made its only one.

    Raises TrainerError, class INVALID_INPUT: the template reads what a conversation does not have, or takes
    too long.
    """
    from tunesmith_trainer.template import Renderer, Template

    asked = [place for place, turn in enumerate(messages) if turn["role"] == "user"]
    template = Template(parts.get("system", ""), parts.get("prompt", ""))
    if not template.system and not template.prompt:
        return messages
    with Renderer(template) as renderer:
        if not template.prompt:
            return renderer.render({"messages": messages}, "the conversation")
        rows = ((f"message {place + 1}", {"messages": messages[: place + 1]}) for place in asked)
        made = dict(zip(asked, renderer.render_all(rows), strict=True))
    told = [turn for turn in next(iter(made.values()), []) if turn["role"] == "system"]
    turns = [
        turn if place not in made else {**turn, "content": made[place][-1]["content"]}
        for place, turn in enumerate(messages)
        if turn["role"] != "system" or not told
    ]
    return [*told, *turns]


def render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """A conversation as the model reads it, up to where its answer begins.

    Raises TrainerError, class INVALID_INPUT: the template refuses the conversation.
    """
    from tunesmith_trainer.chat import ChatFormat
    from tunesmith_trainer.failure import invalid_input

    ChatFormat(tokenizer)  # gives a tokenizer without a template the one that training uses
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template raises what it likes
        raise invalid_input(
            "CHAT_TEMPLATE_REFUSED",
            f"the model's chat template refuses the conversation: {type(error).__name__}: {error}"[:500],
            "use the roles and the order it allows, most often system, then user and assistant in turn",
        ) from error


def _endless() -> Exception:
    from tunesmith_trainer.failure import invalid_input

    return invalid_input(
        "CHAT_TEMPLATE_REFUSED",
        f"the template did not end within {TEMPLATE_SECONDS:g} s",
        "look for a loop in the template that does not end, or use another template",
    )


if __name__ == "__main__":
    sys.exit(main())
