"""`tunesmith datasets`, the commands that look into versions and derive others from them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import click
from rich.markup import escape
from rich.text import Text

from tunesmith import names
from tunesmith.api.registry.v1 import datasets_pb2, statistics_pb2
from tunesmith.cli import text
from tunesmith.cli.datasets import datasets, pairs
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_facts, print_json, print_table
from tunesmith.cli.transfer import share_bar

_BAR = 40


@datasets.command()
@click.argument("dataset")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def versions(ctx: click.Context, dataset: str, as_json: bool) -> None:
    """List the versions of DATASET and what each was made of."""
    with connect(ctx) as client:
        found = list(client.datasets.versions(dataset))
    if as_json:
        print_json(found)
        return
    print_table(
        ["VERSION", "ROWS", "SIZE", "FORM", "DIGEST", "MADE FROM", "BY", "WHEN"],
        [
            (
                _name(version),
                f"{version.num_rows:,}",
                text.size(version.size_bytes),
                version.row_format,
                version.digest[:12],
                escape(_origin(version)),
                escape(version.creator),
                text.ago(version.create_time),
            )
            for version in found
        ],
        "no versions",
    )


def _origin(version: datasets_pb2.DatasetVersion) -> str:
    if not version.HasField("derivation"):
        return version.source
    of = ", ".join(_short(each.version) for each in version.derivation.inputs)
    return f"{version.derivation.operation} of {of} {version.derivation.parameters}"


def _short(name: str) -> str:
    return f"{names.last_part(name.rpartition('/versions/')[0])}@{name.rpartition('/')[2]}"


def _name(version: datasets_pb2.DatasetVersion) -> str:
    return _short(version.name)


@datasets.command()
@click.argument("version")
@click.option("--base", "base_model", default="", help="Base model whose tokenizer counts tokens.")
@click.option("--template", "prompt_template", default="", help="Prompt template, ID or ID@VERSION.")
@click.option("--max-length", type=int, default=0, help="Tokens behind which rows are cut. Default: 512.")
@click.option(
    "--overlap", "overlap_with", multiple=True, help="Another version to look for the same rows in."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def stats(
    ctx: click.Context,
    version: str,
    base_model: str,
    prompt_template: str,
    max_length: int,
    overlap_with: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show what is in VERSION: lengths, roles, languages, labels, duplicates, overlap, odd characters."""
    with connect(ctx) as client, share_bar(f"looking into {version}") as on_progress:
        found = client.datasets.statistics(
            version,
            base_model=base_model,
            prompt_template=prompt_template,
            max_length=max_length,
            overlap_with=overlap_with,
            on_progress=on_progress,
        )
    if as_json:
        print_json(found)
        return
    print_facts(_facts(found))
    for title, histogram in _histograms(found):
        _draw(title, histogram)
    for title, shares in (
        ("roles", found.roles),
        ("languages", found.languages),
        ("labels", found.labels),
        ("suspicious characters", found.suspicious),
    ):
        _draw_shares(title, shares)


def _facts(found: statistics_pb2.DatasetStatistics) -> Iterable[tuple[str, str]]:
    yield "version", _short(found.dataset_version)
    yield "rows", f"{found.num_rows:,}, {text.size(found.size_bytes)}"
    yield "duplicates", f"{found.num_exact_duplicates:,} exact, {found.num_near_duplicates:,} near"
    for pair in found.duplicates[:3]:
        yield "", f"row {pair.row} is like row {pair.like_row} ({pair.similarity:.2f})"
    for overlap in found.overlaps:
        yield "overlap", f"{overlap.num_rows:,} rows stand in {_short(overlap.dataset_version)} too"
    yield "empty answers", f"{found.num_empty_answers:,}" if found.num_empty_answers else ""
    if found.HasField("tokens"):
        tokens = found.tokens
        yield "tokens", f"{tokens.num_tokens:,}, {tokens.num_trained_tokens:,} of them learnt"
        cut = f"{tokens.num_truncated:,} rows ({tokens.truncated_share:.1%}) at {tokens.max_length}"
        yield "cut", cut
        yield "nothing to learn", f"{tokens.num_without_labels:,} rows" if tokens.num_without_labels else ""
        yield "not rendered", f"{tokens.num_errors:,}: {tokens.first_error}" if tokens.num_errors else ""
    yield "tokens", found.tokens_missing
    yield "label balance", f"{found.label_balance:.2f}" if found.labels else ""


def _histograms(
    found: statistics_pb2.DatasetStatistics,
) -> Iterable[tuple[str, statistics_pb2.CountHistogram]]:
    if found.HasField("tokens"):
        yield "tokens of a row", found.tokens.lengths
        yield "learnt tokens of a row", found.tokens.trained
    else:
        yield "characters of a row", found.characters
    if found.HasField("turns"):
        yield "turns", found.turns


def _draw(title: str, histogram: statistics_pb2.CountHistogram) -> None:
    if not histogram.counts:
        return
    out, most = console(), max(histogram.counts)
    out.print(
        f"\n[bold]{title}[/bold]  mean {histogram.mean:,.0f}, half up to {histogram.p50:,.0f}, "
        f"99 % up to {histogram.p99:,.0f}, most {histogram.max:,.0f}"
    )
    last = max(index for index, count in enumerate(histogram.counts) if count)
    for index, count in enumerate(histogram.counts[: last + 1]):
        low, high = histogram.bounds[index], histogram.bounds[index + 1] - 1
        span = f"{low:,.0f}" if high <= low else f"{low:,.0f} to {high:,.0f}"
        out.print(f"{span:>22} {_bar(count / most)} {count:,}", soft_wrap=True)


def _draw_shares(title: str, shares: Sequence[statistics_pb2.Share]) -> None:
    if not shares:
        return
    out = console()
    out.print(f"\n[bold]{title}[/bold]")
    for share in shares[:15]:
        bar = _bar(share.share)
        out.print(f"{escape(share.name)[:22]:>22} {bar} {share.count:,} ({share.share:.1%})", soft_wrap=True)


def _bar(share: float) -> str:
    return "█" * round(share * _BAR) or "▏"


@datasets.command()
@click.argument("version")
@click.option("--base", "base_model", default="", help="Base model whose chat template renders the rows.")
@click.option("--template", "prompt_template", default="", help="Prompt template, ID or ID@VERSION.")
@click.option("--max-length", type=int, default=0, help="Tokens behind which rows are cut. Default: 512.")
@click.option("--contains", default="", help="Only rows that hold this text.")
@click.option("--limit", type=click.IntRange(1, 1000), default=5, show_default=True, help="Rows to show.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def preview(
    ctx: click.Context,
    version: str,
    base_model: str,
    prompt_template: str,
    max_length: int,
    contains: str,
    limit: int,
    as_json: bool,
) -> None:
    """Show rows of VERSION; with --base as training sees them, what is learnt in green."""
    with connect(ctx) as client:
        rows = client.datasets.rows(
            version,
            contains=contains,
            base_model=base_model,
            prompt_template=prompt_template,
            max_length=max_length,
            page_size=min(limit, 50),
        )
        found = list(islice(rows, limit))
    if as_json:
        print_json(found)
        return
    out = console()
    for row in found:
        out.print(_heading(row))
        out.print(_rendered(row))
    if not found:
        console(stderr=True).print("no such rows", style="dim")


def _heading(row: datasets_pb2.RowPreview) -> str:
    if not row.segments:
        return f"[bold]row {row.row}[/bold]"
    cut = ", [red]cut[/red]" if row.truncated else ""
    return f"[bold]row {row.row}[/bold]  {row.num_tokens:,} tokens, {row.num_trained_tokens:,} learnt{cut}"


def _rendered(row: datasets_pb2.RowPreview) -> Text:
    if row.error:
        return Text(row.error, style="red")
    if not row.segments:
        return Text(row.json)
    # On a terminal green is learnt; where there are no colours, brackets say so.
    plain = not console().is_terminal
    shown = Text()
    for segment in row.segments:
        content = f"⟦{segment.text}⟧" if plain and segment.trained else segment.text
        shown.append(content, style="green" if segment.trained else "dim")
    return shown


@datasets.command()
@click.argument("version")
@click.argument("parts", nargs=-1, required=True, metavar="ID=WEIGHT...")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same parts.")
@click.option("--group-by", default="", help="Column whose equal values stay together.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of the versions made.")
@click.pass_context
def split(
    ctx: click.Context, version: str, parts: tuple[str, ...], seed: int, group_by: str, as_json: bool
) -> None:
    """Deal the rows of VERSION out to several datasets; equal rows stay together.

    \b
    Example:
      tunesmith datasets split support-chat train=0.9 held-out=0.1
    """
    with connect(ctx) as client:
        found = client.datasets.split(version, _weights(parts), seed=seed, group_by=group_by)
    _tell(found, as_json)


@datasets.command("filter")
@click.argument("version")
@click.argument("expression")
@click.option("--id", "dataset_id", required=True, help="Dataset that takes the rows.")
@click.option("--drop-duplicates", is_flag=True, help="Keep the first of rows that are the same.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of the version made.")
@click.pass_context
def filter_rows(
    ctx: click.Context, version: str, expression: str, dataset_id: str, drop_duplicates: bool, as_json: bool
) -> None:
    """Keep the rows of VERSION that fulfil EXPRESSION.

    \b
    Example:
      tunesmith datasets filter support-chat 'length(prompt) < 2000 and completion != ""' --id clean
    """
    with connect(ctx) as client:
        made = client.datasets.filter(version, dataset_id, expression, drop_duplicates=drop_duplicates)
    _tell([made], as_json)


@datasets.command()
@click.argument("version")
@click.argument("num_rows", type=click.IntRange(1))
@click.option("--id", "dataset_id", required=True, help="Dataset that takes the rows.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same rows.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of the version made.")
@click.pass_context
def sample(
    ctx: click.Context, version: str, num_rows: int, dataset_id: str, seed: int, as_json: bool
) -> None:
    """Keep NUM_ROWS rows of VERSION, chosen by chance."""
    with connect(ctx) as client:
        made = client.datasets.sample(version, dataset_id, num_rows, seed=seed)
    _tell([made], as_json)


@datasets.command()
@click.argument("parts", nargs=-1, required=True, metavar="VERSION=WEIGHT...")
@click.option("--id", "dataset_id", required=True, help="Dataset that takes the rows.")
@click.option("--rows", "num_rows", type=int, default=0, help="Rows. Default: as many as none comes twice.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same rows.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of the version made.")
@click.pass_context
def mix(
    ctx: click.Context, parts: tuple[str, ...], dataset_id: str, num_rows: int, seed: int, as_json: bool
) -> None:
    """Put versions together by their weights, shuffled.

    \b
    Example:
      tunesmith datasets mix support-chat=3 general@2=1 --id blend
    """
    with connect(ctx) as client:
        made = client.datasets.mix(_weights(parts), dataset_id, num_rows=num_rows, seed=seed)
    _tell([made], as_json)


def _weights(parts: Iterable[str]) -> dict[str, float]:
    try:
        return {name: float(weight) for name, weight in pairs(parts, "parts").items()}
    except ValueError as error:
        raise click.BadParameter(f"a weight is a number: {error}", param_hint="parts") from None


def _tell(made: Sequence[datasets_pb2.DatasetVersion], as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    for version in made:
        console().print(f"[bold]{_name(version)}[/bold]  {version.num_rows:,} rows")


@datasets.command()
@click.argument("version")
@click.option("--to", type=click.Path(path_type=Path), help="File to write. Default: named as the dataset.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["jsonl", "csv", "parquet"]),
    help="Format. Default: that of the file's name, else jsonl.",
)
@click.pass_context
def export(ctx: click.Context, version: str, to: Path | None, file_format: str | None) -> None:
    """Write VERSION into a file. CSV escapes what a spreadsheet would run as a formula."""
    suffix = to.suffix.lstrip(".") if to is not None else ""
    chosen = file_format or (suffix if suffix in ("csv", "parquet") else "jsonl")
    target = to or Path(f"{version.replace('@', '-')}.{chosen}")
    with connect(ctx) as client:
        client.datasets.export(version, target, chosen)
    sys.stdout.write(f"{target}\n")
