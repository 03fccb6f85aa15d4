"""`tunesmith submit --dry-run`: what a job would take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from tunesmith import names
from tunesmith.cli import text
from tunesmith.cli.failure import USAGE, detail, say
from tunesmith.cli.session import console
from tunesmith.cli.table import print_facts, print_json, print_table

if TYPE_CHECKING:
    from tunesmith.api.gateway.v1 import quotes_pb2


def print_quote(quote: quotes_pb2.QuoteJobResponse, as_json: bool) -> int:
    """Prints a quote and returns the exit code: that of bad input when the job would be refused."""
    if as_json:
        print_json(quote)
    else:
        print_facts([("memory", _memory(quote)), *_work(quote), ("start", _start(quote))])
        if quote.nodes:
            print_table(["NODE", "VERDICT", "MEMORY FOR A PROCESS"], map(_node, quote.nodes), "")
        for mistake in quote.mistakes:
            say("error:", f"{mistake.field} {mistake.problem}", "red")
            detail("remedy:", mistake.remedy)
        if not quote.mistakes:
            console(stderr=True).print("nothing was created", style="dim")
    return USAGE if quote.mistakes else 0


def _memory(quote: quotes_pb2.QuoteJobResponse) -> str:
    if not quote.HasField("memory"):
        return "not known"
    weights = text.size(quote.memory.weights_bytes)
    return f"about {text.size(quote.memory.process_bytes)} for each process, weights {weights} of it"


def _work(quote: quotes_pb2.QuoteJobResponse) -> list[tuple[str, str]]:
    if not quote.HasField("time"):
        return []
    time = quote.time
    steps = f"{time.num_steps:,} steps of {time.rows_per_step:,} rows"
    if not time.num_steps:
        steps = "packing decides how many steps"
    learnt = "no run to learn from yet"
    if time.HasField("training"):
        seconds = time.training.ToTimedelta().total_seconds()
        learnt = f"about {text.duration(seconds)} of training, learnt from {time.num_jobs} earlier jobs"
    return [("work", f"{steps}; {time.num_rows:,} rows to learn"), ("time", learnt)]


def _start(quote: quotes_pb2.QuoteJobResponse) -> str:
    if not quote.rule:
        return "at once" if quote.nodes else "not known"
    before = f"; {quote.queue_position} before it" if quote.queue_position else ""
    change = f"\n{quote.change.text}" if quote.HasField("change") else ""
    return escape(f"{quote.message}{before}{change}")


def _node(node: quotes_pb2.NodeQuote) -> tuple[str, str, str]:
    enough = not node.HasField("enough_memory") or node.enough_memory
    memory = text.size(node.process_bytes) + ("" if enough else " [red]too little[/red]")
    return names.last_part(node.node), escape(node.message), memory
