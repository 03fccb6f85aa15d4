"""`tunesmith chat`: talk to a model, or ask one question."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
from google.protobuf.json_format import MessageToDict

from tunesmith import names
from tunesmith.api.registry.v1 import chat_pb2
from tunesmith.chat import Reply
from tunesmith.cli.failure import show
from tunesmith.cli.output import print_data
from tunesmith.cli.session import connect, console
from tunesmith.errors import TunesmithError

if TYPE_CHECKING:
    from tunesmith.client import Client

_HELP = """\
/set NAME VALUE   set temperature, top_p, top_k, seed, max_new_tokens, repetition_penalty or stop
/show             print what is set
/reset            begin a new conversation
/save DATASET     append the conversation to a dataset, as a row of a new version
/quit             leave (or Ctrl-D)"""
_KINDS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "repetition_penalty": float,
    "top_k": int,
    "seed": int,
    "max_new_tokens": int,
    "stop": lambda text: [text],
}


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET [TARGET2]")
@click.option("-m", "--message", help="Ask this once and leave. Also: pipe the question in.")
@click.option("--system", default="", help="A system message before the conversation.")
@click.option("--temperature", type=float, help="How freely words are chosen. Default 0: the likeliest.")
@click.option("--top-p", type=float, help="Choose among the likeliest with this share of probability.")
@click.option("--top-k", type=int, help="Choose among so many likeliest.")
@click.option("--seed", type=int, help="Seed of the choice.")
@click.option("--max-new-tokens", type=int, help="Longest answer, in tokens. Default 256.")
@click.option("--repetition-penalty", type=float, help="Makes tokens that stood before less likely.")
@click.option("--stop", multiple=True, help="End the answer before this text. May be repeated.")
@click.option("--prompt", "prompt_template", default="", help="Prompt template, as NAME or NAME@VERSION.")
@click.option("--node", default="", help="Node that answers. Default: the one best suited.")
@click.option("--save", "dataset", help="Append the conversation to this dataset at the end.")
@click.option("--json", "as_json", is_flag=True, help="Print the answers as a JSON array.")
@click.pass_context
def chat(
    ctx: click.Context,
    /,
    targets: tuple[str, ...],
    message: str | None,
    system: str,
    prompt_template: str,
    node: str,
    dataset: str | None,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Talk to a model; name two to have them answer side by side.

    A TARGET is a base model (BASE), a version (MODEL@3, MODEL@ALIAS, MODEL@production) or the checkpoint of a
    job, running or not (job:JOB for its newest, job:JOB@STEP).

    \b
    Examples:
      tunesmith chat smollm2-135m-instruct
      tunesmith chat assistant@production smollm2-135m-instruct
      tunesmith chat job:demo-k3f9@40 -m "What is the capital of France?"
      echo "Tell me a joke." | tunesmith chat assistant@3 --temperature 0.8 --json
    """
    if len(targets) > 2:
        raise click.UsageError("name one model, or two to compare them")
    given = {name: value for name, value in parameters.items() if value not in (None, ())}
    with connect(ctx) as client:
        talk = Talk(client, targets, system, {"prompt_template": prompt_template, "node": node}, given)
        if message is None and not sys.stdin.isatty():
            message = sys.stdin.read().strip()
        if message is not None:
            _once(talk, message, as_json)
        elif as_json:
            raise click.UsageError("--json answers one question: give it with -m, or pipe it in")
        else:
            _interactive(talk)
        if dataset:
            talk.save(dataset)


class Talk:
    """A conversation with one target, or with two that hear the same; it goes on as the first answered."""

    def __init__(
        self,
        client: Client,
        targets: tuple[str, ...],
        system: str,
        options: dict[str, str],
        parameters: dict[str, Any],
    ) -> None:
        self._client, self.targets, self._system = client, targets, system
        self._options, self.parameters = options, parameters
        self._turns: list[dict[str, str]] = []

    def reset(self) -> None:
        """Begins anew."""
        self._turns = []

    def ask(self, text: str) -> Iterator[tuple[Reply, chat_pb2.ChatResponse]]:
        """Yields each message of the answers with the answer it belongs to; then the turn is part of the
        conversation. With two targets it goes on with the first one's answer."""
        turns = [*self._turns, {"role": "user", "content": text}]
        head = [{"role": "system", "content": self._system}] if self._system else []
        replies = [Reply(target) for target in self.targets]
        responses = self._client.chat.stream(
            self.targets, [*head, *turns], **self._options, **self.parameters
        )
        for response in responses:
            replies[response.target].add(response)
            yield replies[response.target], response
        self._turns = [*turns, {"role": "assistant", "content": replies[0].text}]

    def save(self, dataset: str) -> None:
        """Appends the conversation to a dataset."""
        if not self._turns:
            console(stderr=True).print("nothing was said yet", style="dim")
            return
        version = self._client.chat.keep(dataset, self._turns)
        dataset_id = names.last_part(version.name.partition("/versions/")[0])
        console(stderr=True).print(f"[green]kept[/green] as {dataset_id}@{version.version}")


def _once(talk: Talk, message: str, as_json: bool) -> None:
    replies: dict[str, Reply] = {}
    several = len(talk.targets) > 1
    for reply, response in talk.ask(message):
        replies[reply.target] = reply
        if response.delta and not as_json and not several:
            click.echo(response.delta, nl=False)
    if as_json:
        print_data([_as_dict(reply) for reply in replies.values()])
        return
    if not several:
        click.echo()
        return
    for target in talk.targets:
        click.echo(f"{click.style(target, bold=True)}\n{replies[target].text}\n")


def _as_dict(reply: Reply) -> dict[str, Any]:
    def plain(message: Any) -> Any:
        return MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    return {**vars(reply), "usage": plain(reply.usage), "timings": plain(reply.timings)}


def _interactive(talk: Talk) -> None:
    click.echo(f"Talking to {' and '.join(talk.targets)}. /help lists what you can say beside questions.")
    while True:
        try:
            line = input(click.style("> ", bold=True)).strip()
        except EOFError:
            click.echo()
            return
        if line in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                _command(talk, line)
            elif line:
                _turn(talk, line)
        except TunesmithError as error:
            show(error)  # the conversation goes on
        except KeyboardInterrupt:
            click.echo(click.style(" (stopped)", dim=True))


def _turn(talk: Talk, line: str) -> None:
    if len(talk.targets) > 1:
        _side_by_side(talk, line)
        return
    waiting = console(stderr=True).status("…")
    waiting.start()
    try:
        for reply, response in talk.ask(line):
            if response.state == chat_pb2.CHAT_STATE_WAITING:
                waiting.update(f"{response.queue_position} answers come first")
            elif response.state == chat_pb2.CHAT_STATE_LOADING:
                waiting.update("the model is being loaded")
            elif response.delta:
                waiting.stop()
                click.echo(response.delta, nl=False)
            if response.state == chat_pb2.CHAT_STATE_DONE:
                waiting.stop()
                click.echo("\n" + click.style(_summary(reply), dim=True))
    finally:
        waiting.stop()


def _side_by_side(talk: Talk, line: str) -> None:
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    texts = {target: "…" for target in talk.targets}

    def picture() -> Table:
        table = Table.grid(expand=True, padding=(0, 2))
        for _ in texts:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(target, style="bold") for target in texts))
        table.add_row(*(Text(text) for text in texts.values()))
        return table

    with Live(picture(), console=console(), refresh_per_second=12) as live:
        for reply, response in talk.ask(line):
            if reply.text:
                texts[reply.target] = reply.text
            if response.state == chat_pb2.CHAT_STATE_DONE:
                texts[reply.target] = f"{reply.text}\n{_summary(reply)}"
            live.update(picture())


def _summary(reply: Reply) -> str:
    timings = reply.timings
    return (
        f"[{reply.usage.completion_tokens} tokens, {timings.tokens_per_second:.1f}/s, "
        f"first after {timings.first_token_seconds:.2f} s, on {reply.node}]"
    )


def _command(talk: Talk, line: str) -> None:
    words = line.split(maxsplit=2)
    if words[0] == "/reset":
        talk.reset()
        click.echo(click.style("a new conversation", dim=True))
    elif words[0] == "/show":
        click.echo(json.dumps(talk.parameters, ensure_ascii=False))
    elif words[0] == "/save" and len(words) == 2:
        talk.save(words[1])
    elif words[0] == "/set" and len(words) == 3 and words[1] in _KINDS:
        try:
            talk.parameters[words[1]] = _KINDS[words[1]](words[2])
        except ValueError:
            click.echo(f"{words[2]} is no number", err=True)
    else:
        click.echo(_HELP)
