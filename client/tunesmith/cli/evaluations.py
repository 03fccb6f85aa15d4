"""`tunesmith evaluate`, `tunesmith evaluations`, and `tunesmith export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.markup import escape

from tunesmith import names
from tunesmith.cli import text
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_facts, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.api.registry.v1 import evaluations_pb2
    from tunesmith.faces import Sync
    from tunesmith.jobs import Job

_PAGE_ROWS = 20


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("-d", "--dataset", required=True, help="Dataset to answer, `id` or `id@version`.")
@click.option(
    "-k",
    "--scorer",
    "scorers",
    multiple=True,
    required=True,
    help="How answers are judged; repeatable. With a value: regex=PATTERN, expression=JINJA, "
    "multiple_choice=A|B.",
)
@click.option("-t", "--template", default="", help="Prompt template, `id` or `id@version`.")
@click.option("--max-rows", type=click.IntRange(min=1), help="Most rows; more are sampled. Default: all.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Longest answer. Default 128.")
@click.option("--temperature", type=float, default=0.0, help="0 (default): the most likely token each time.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the rows and of sampling.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Rows answered at once. Default 8.")
@click.option("--gpus", type=click.IntRange(0, 1), default=0, help="GPUs: 0 (default) or 1.")
@click.option("-f", "--follow", is_flag=True, help="Follow it to its end, then print the scores.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the job, or with --follow the evaluation, as JSON."
)
@click.pass_context
def evaluate(
    ctx: click.Context,
    targets: tuple[str, ...],
    dataset: str,
    scorers: tuple[str, ...],
    template: str,
    max_rows: int | None,
    max_new_tokens: int | None,
    temperature: float,
    seed: int,
    batch_size: int | None,
    gpus: int,
    follow: bool,
    as_json: bool,
) -> int:
    """Evaluate TARGETs on a dataset; the first is what the others are compared with.

    A target is a base model, a version (`support@3`, `support@production`) or a checkpoint (`job:JOB`,
    `job:JOB@STEP`). All need the same base model. It runs on a node as a job: it can be paused, moved and
    cancelled, and goes on after a crash where it was.

    Scorers: perplexity, exact_match, token_f1, rouge, bleu, chrf, json, regex, multiple_choice, expression;
    judge in a job file.

    \b
    Examples:
      tunesmith evaluate smollm2-135m-instruct support@2 -d support-test -k exact_match -k rouge --follow
      tunesmith evaluate job:support-k3f9@200 -d support-test -k perplexity --max-rows 500
    """
    from tunesmith.api.jobs.v1 import spec_pb2

    spec = spec_pb2.JobSpec(resources=spec_pb2.ResourceSpec(gpus_per_node=gpus)) if gpus else None
    generation = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    fields = {"max_rows": max_rows, "batch_size": batch_size, "seed": seed}
    with connect(ctx) as client:
        job = client.evaluations.submit(
            targets,
            dataset,
            scorers,
            prompt_template=template,
            generation={key: value for key, value in generation.items() if value},
            spec=spec,
            settings={key: value for key, value in fields.items() if value},
        )
        if not follow:
            return _accepted(job, as_json)
        code = _follow(job, as_json)
        if code == 0:
            found = client.evaluations.get(job.proto.evaluation)
            if as_json:
                print_json(found)
            else:
                _print_evaluation(found)
        return code


@click.command()
@click.argument("target")
@click.option("-m", "--model", required=True, help="Model that receives the new version.")
@click.option(
    "--format", "format_", type=click.Choice(["adapter", "merged"]), help="Default: as it was trained."
)
@click.option(
    "--weights", type=click.Choice(["float32", "bfloat16"]), help="Of a merged model. Default float32."
)
@click.option("-f", "--follow", is_flag=True, help="Follow it to its end.")
@click.option("--json", "as_json", is_flag=True, help="Print the job as JSON.")
@click.pass_context
def convert(
    ctx: click.Context,
    target: str,
    model: str,
    format_: str | None,
    weights: str | None,
    follow: bool,
    as_json: bool,
) -> int:
    """Make a version of MODEL from TARGET, a checkpoint or a version, in another form.

    `merged` works the adapter into the base model: a folder that transformers loads by itself. `adapter` of a
    checkpoint is what training would have left at that step. GGUF: `models export --format gguf`.

    \b
    Examples:
      tunesmith convert job:support-k3f9@200 --model support
      tunesmith convert support@production --model support-merged --format merged --follow
    """
    with connect(ctx) as client:
        job = client.evaluations.export(target, model, format=format_ or "", weights=weights or "")
        if not follow:
            return _accepted(job, as_json)
        code = _follow(job, as_json)
        if as_json:
            print_json(job.proto)
        return code


@click.group()
def evaluations() -> None:
    """Evaluations: scores with their confidence, rows side by side, comparisons.

    \b
    Examples:
      tunesmith evaluations list --target support@3
      tunesmith evaluations show evaluation-k3f9
      tunesmith evaluations samples evaluation-k3f9 --metric exact_match --disagree
      tunesmith evaluations compare evaluation-k3f9 evaluation-m2p4
    """


@evaluations.command("list")
@click.option("--target", default="", help="Only those with this target.")
@click.option("--dataset", default="", help="Only those on this dataset, `id` or `id@version`.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Most shown.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def list_evaluations(ctx: click.Context, target: str, dataset: str, limit: int, as_json: bool) -> None:
    """List evaluations, newest first."""
    with connect(ctx) as client:
        found = list(client.evaluations.list(target=target, dataset=dataset, limit=limit))
    if as_json:
        print_json(found)
        return
    print_table(
        ["EVALUATION", "TARGETS", "DATASET", "ROWS", "SCORES", "MADE"],
        [
            (
                each.evaluation_id,
                ", ".join(_short(target.name) for target in each.targets),
                _short(each.dataset_version),
                f"{each.num_rows:,}",
                _summary(each),
                text.ago(each.create_time),
            )
            for each in found
        ],
        "no evaluations; `tunesmith evaluate TARGET --dataset D --scorer exact_match` makes one",
    )


@evaluations.command()
@click.argument("evaluation")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def show(ctx: click.Context, evaluation: str, as_json: bool) -> None:
    """Show the scores of EVALUATION (its id, or its job's name) with 95 % confidence intervals."""
    with connect(ctx) as client:
        found = client.evaluations.get(evaluation)
    if as_json:
        print_json(found)
    else:
        _print_evaluation(found)


@evaluations.command()
@click.argument("evaluation")
@click.option("--metric", default="", help="Metric to filter and order by. Default: the first.")
@click.option("--at-most", type=float, help="Only rows where it is at most this.")
@click.option("--at-least", type=float, help="Only rows where it is at least this.")
@click.option("--disagree", is_flag=True, help="Only rows where targets differ.")
@click.option("--target", "target_index", type=click.IntRange(0, 15), help="Place of the target that counts.")
@click.option(
    "--order",
    type=click.Choice(["ascending", "descending", "difference"]),
    help="Default: as in the dataset.",
)
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=1),
    default=_PAGE_ROWS,
    show_default=True,
    help="Most rows shown.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def samples(
    ctx: click.Context,
    evaluation: str,
    metric: str,
    at_most: float | None,
    at_least: float | None,
    disagree: bool,
    target_index: int | None,
    order: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show rows of EVALUATION: prompt, wanted answer, and each target's answer with its values."""
    with connect(ctx) as client:
        made = client.evaluations.get(evaluation)
        found = list(
            client.evaluations.samples(
                made.name,
                metric=metric,
                at_most=at_most,
                at_least=at_least,
                disagree=disagree,
                target_index=target_index,
                order=order or "",
                limit=limit,
            )
        )
    if as_json:
        print_json(found)
        return
    if not found:
        console(stderr=True).print("no rows match", style="dim")
    for sample in found:
        _print_sample(made, sample)


@evaluations.command()
@click.argument("targets", nargs=-1, required=True, metavar="EVALUATION[#TARGET]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def compare(ctx: click.Context, targets: tuple[str, ...], as_json: bool) -> None:
    """Compare targets row by row with the first, on the rows that all have.

    One evaluation alone compares its targets; `k3f9#1` is the second target of k3f9. A difference is
    coloured when its 95 % interval leaves out 0.
    """
    with connect(ctx) as client:
        found = client.evaluations.compare(*targets)
    if as_json:
        print_json(found)
    else:
        _print_comparisons(found.comparisons, list(found.targets))


def _accepted(job: Job[Sync], as_json: bool) -> int:
    from tunesmith.cli.jobs import await_validation

    return await_validation(job, as_json)


def _follow(job: Job[Sync], as_json: bool) -> int:
    from tunesmith.cli.failure import JOB_FAILED
    from tunesmith.cli.follow import follow_job, show_failure

    if not as_json:
        return follow_job(job, as_json)
    job.wait()
    if job.succeeded:
        return 0
    show_failure(job.proto)
    return JOB_FAILED


def _print_evaluation(made: evaluations_pb2.Evaluation) -> None:
    print_facts(
        [
            ("evaluation", made.evaluation_id),
            ("dataset", f"{_short(made.dataset_version)}, {made.num_rows:,} rows"),
            ("base model", names.last_part(made.base_model)),
            ("made", f"{text.clock(made.create_time)} ({text.ago(made.create_time)})"),
        ]
    )
    by_metric: dict[str, dict[int, evaluations_pb2.Score]] = {}
    for score in made.scores:
        by_metric.setdefault(score.metric, {})[score.target_index] = score
    columns = ["METRIC", *(f"{at}: {_short(target.name)}" for at, target in enumerate(made.targets))]
    print_table(
        columns,
        [
            (
                _metric(next(iter(scores.values()))),
                *(_value(scores.get(at)) for at in range(len(made.targets))),
            )
            for scores in by_metric.values()
        ],
        "no scores",
    )
    if made.comparisons:
        console().print()
        _print_comparisons(made.comparisons, [target.name for target in made.targets])
    for warning in made.warnings:
        console(stderr=True).print(f"[yellow]note:[/yellow] {escape(warning)}")


def _print_comparisons(comparisons: Sequence[evaluations_pb2.TargetComparison], targets: list[str]) -> None:
    first = _short(targets[0])
    print_table(
        ["METRIC", f"BESIDE {first}", "DIFFERENCE", "95 % INTERVAL", "WINS", "TIES", "LOSSES"],
        [
            (
                escape(each.metric),
                f"{each.target_index}: {_short(targets[each.target_index])}",
                _difference(each),
                f"{each.ci_low:+.4g} to {each.ci_high:+.4g}",
                f"{each.wins:,}",
                f"{each.ties:,}",
                f"{each.losses:,}",
            )
            for each in comparisons
        ],
        "nothing to compare: one target, or no metric in common",
    )


def _print_sample(made: evaluations_pb2.Evaluation, sample: evaluations_pb2.EvaluationSample) -> None:
    out = console()
    out.rule(f"row {sample.row}", align="left", style="dim")
    facts = [(message.role, escape(text.one_line(message.content))) for message in sample.prompt]
    facts.append(("wanted", f"[bold]{escape(text.one_line(sample.reference))}[/bold]"))
    for target, answer in zip(made.targets, sample.answers, strict=False):
        values = "  ".join(f"{name} {value:.4g}" for name, value in sorted(answer.scores.items()))
        facts.append(
            (_short(target.name), f"{escape(text.one_line(answer.text))}\n[dim]{escape(values)}[/dim]")
        )
        facts += [
            (f"  {name}", f"[dim]{escape(text.one_line(note))}[/dim]") for name, note in answer.notes.items()
        ]
    print_facts(facts)


def _metric(score: evaluations_pb2.Score) -> str:
    return escape(score.metric) + (" ↑" if score.higher_is_better else " ↓")


def _value(score: evaluations_pb2.Score | None) -> str:
    """A value with half the width of its interval."""
    if score is None:
        return "-"
    return f"{score.value:.4g} ±{(score.ci_high - score.ci_low) / 2:.2g}"


def _difference(each: evaluations_pb2.TargetComparison) -> str:
    shown = f"{each.difference:+.4g}"
    if each.ci_low <= 0 <= each.ci_high:
        return shown
    better = (each.difference > 0) == each.higher_is_better
    return f"[green]{shown}[/green]" if better else f"[red]{shown}[/red]"


def _summary(made: evaluations_pb2.Evaluation) -> str:
    """The first metric of each target."""
    if not made.scores:
        return "-"
    metric = made.scores[0].metric
    values = [f"{score.value:.4g}" for score in made.scores if score.metric == metric]
    return f"{escape(metric)} {' / '.join(values)}"


def _short(name: str) -> str:
    """`support@3`, `tiny`, `k3f9:1a2b3c4d` for a checkpoint."""
    parts = name.split("/")
    if len(parts) == 6 and parts[4] == "versions":
        return f"{parts[3]}@{parts[5]}"
    if len(parts) == 6 and parts[4] == "checkpoints":
        return f"{parts[3][-4:]}:{parts[5][:8]}"
    return parts[-1]
