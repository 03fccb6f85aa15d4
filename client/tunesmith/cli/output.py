"""How results are printed: a table for people, JSON, YAML or CSV for programs. One way for all commands.

Each command with --json has --output too; this module adds it, so that no command knows of formats.
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

FORMATS = ("table", "json", "yaml", "csv")
_NAME = "output_format"
_STREAMS = ("watch", "submit")  # their updates differ in what they have, so there is no line of headings


def add_option(command: click.Command) -> click.Command:
    """Gives a command that has --json, and those below it, the option --output; returns it."""
    if isinstance(command, click.Group):
        for below in command.commands.values():
            add_option(below)
    names = {parameter.name for parameter in command.params}
    flag = next((name for name in ("as_json", "form") if _takes_json(command, name)), "")
    if not flag or _NAME in names or command.callback is None:
        return command
    formats = [form for form in FORMATS if form != "csv" or command.name not in _STREAMS]
    option = click.Option(
        ["--output", _NAME], type=click.Choice(formats), help="How results are printed. Default: table."
    )
    place = next(index for index, each in enumerate(command.params) if "--json" in each.opts)
    command.params.insert(place + 1, option)
    command.callback = _chosen(command.callback, flag)
    return command


def _takes_json(command: click.Command, name: str) -> bool:
    return any(each.name == name and "--json" in each.opts for each in command.params)


def _chosen(callback: Any, flag: str) -> Any:
    @functools.wraps(callback)
    def call(*args: Any, **given: Any) -> Any:
        form = given.pop(_NAME)
        context = click.get_current_context().find_root()
        if form is not None:
            context.obj = {**(context.obj or {}), "output": form}
            given[flag] = _flag(flag, form)
        return callback(*args, **given)

    return call


def _flag(flag: str, form: str) -> Any:
    """What the command's own parameter has to be. `form` is that of a command that prints CSV by itself."""
    if flag == "as_json":
        return form != "table"
    return {"table": None, "csv": "csv"}.get(form, "json")


def present() -> str:
    """Returns the format in which data are printed."""
    context = click.get_current_context(silent=True)
    given = (context.find_root().obj or {}).get("output") if context is not None else None
    return given if given in ("yaml", "csv") else "json"


def print_data(data: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Prints an object, or a list of them, in the format asked for."""
    form = present()
    if form == "yaml":
        click.echo(_yaml(data), nl=False)
    elif form == "csv":
        rows = [data] if isinstance(data, Mapping) else data
        click.echo(table_of([flat(row) for row in rows]), nl=False)
    else:
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def print_item(data: Mapping[str, Any]) -> None:
    """Prints one object of a stream in the format asked for: a line of JSON, a document of YAML, a row."""
    form = present()
    if form == "yaml":
        click.echo("---\n" + _yaml(data), nl=False)
    elif form == "csv":
        root = click.get_current_context().find_root()
        first = not root.meta.setdefault("tunesmith.headed", False)
        root.meta["tunesmith.headed"] = True
        click.echo(table_of([flat(data)], headed=first), nl=False)
    else:
        click.echo(json.dumps(data, ensure_ascii=False))


def _yaml(data: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=10_000)
    return text


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object without others in it: `{"a": {"b": 1}}` becomes `{"a.b": 1}`, lists become JSON."""
    return dict(_leaves(row, ""))


def _leaves(row: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False) if value else ""
        elif isinstance(value, bool):
            yield f"{prefix}{key}", "true" if value else "false"
        else:
            yield f"{prefix}{key}", value


def table_of(rows: Sequence[Mapping[str, Any]], *, headed: bool = True) -> str:
    """Returns rows as CSV; a column for each key that any of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if headed and columns:
        writer.writerow(columns)
    writer.writerows([row.get(key, "") for key in columns] for row in rows)
    return text.getvalue()
