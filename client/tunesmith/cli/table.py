"""Listings: a table for people, data for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from tunesmith.cli.output import print_data, print_item
from tunesmith.cli.session import console


def as_dict(message: Message) -> dict[str, Any]:
    """Returns a message as in REST: the proto's names, every field, 64-bit integers as texts."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_json(content: Message | Iterable[Message]) -> None:
    """Prints a message as one JSON object, or several as one JSON array; or as --output says."""
    print_data(as_dict(content) if isinstance(content, Message) else [as_dict(item) for item in content])


def print_json_line(message: Message) -> None:
    """Prints a message as one line of JSON, or as --output says."""
    print_item(as_dict(message))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Prints rows under their columns; `empty` says instead what to do when there are none.

    On a terminal the table fits the window; into a pipe nothing is cut, so that it can be searched.
    """
    rows = list(rows)
    if not rows:
        console(stderr=True).print(empty, style="dim")
        return
    table = Table(box=None, pad_edge=False, header_style="bold dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    out = console()
    if not out.is_terminal:
        out = Console(highlight=False, emoji=False, width=10_000, no_color=True)
    out.print(table, soft_wrap=not out.is_terminal)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Prints names and values in two columns; empty values are left out."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        if value:
            table.add_row(name, value)
    console().print(table)
