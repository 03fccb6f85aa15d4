"""One job in full, for `tunesmith show`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from tunesmith import names
from tunesmith.api.common.v1 import common_pb2
from tunesmith.api.jobs.v1 import jobs_pb2, state_pb2
from tunesmith.cli import text
from tunesmith.cli.follow import show_failure
from tunesmith.cli.session import console
from tunesmith.cli.table import print_facts, print_table

_ATTEMPT_STATES = state_pb2.DESCRIPTOR.enum_types_by_name["AttemptState"]
_CLASSES = state_pb2.DESCRIPTOR.enum_types_by_name["FailureClass"]


def print_card(job: jobs_pb2.Job, attempts: Sequence[state_pb2.Attempt]) -> None:
    """Prints a job with everything a person asks first."""
    out = console()
    out.print(f"[bold]{job.display_name}[/bold]  {text.styled_state(job)}  [dim]{job.job_id}[/dim]")
    print_facts(
        [
            ("base model", escape(names.last_part(job.base_model.name) or job.spec.base_model)),
            ("dataset", escape(_dataset(job))),
            ("training", escape(_training(job)) if _trains(job) else ""),
            ("works on", escape(", ".join(each.name for each in job.targets)) if not _trains(job) else ""),
            ("program", escape(text.one_line(job.spec.external.program))),
            ("on", escape(text.one_line(job.spec.external.host))),
            ("config", escape(_config(job))),
            ("progress", _progress(job)),
            ("loss", _loss(job)),
            ("computing", ", ".join(filter(None, (text.computing(job.progress), text.memory(job.progress))))),
            ("checkpoint", _checkpoint(job)),
            ("lost to faults", text.duration(job.lost_seconds) if job.lost_seconds else ""),
            ("forked from", _origin(job)),
            ("moving to", job.move.node),
            ("model", _model(job.model_version)),
            ("evaluation", names.last_part(job.evaluation)),
            (
                "created",
                f"{text.clock(job.create_time)} ({text.ago(job.create_time)}) by {escape(job.creator)}",
            ),
            ("took", _took(job)),
            ("labels", escape(" ".join(f"{key}={value}" for key, value in sorted(job.spec.labels.items())))),
        ]
    )
    for condition in job.conditions:
        if condition.message and condition.status != common_pb2.CONDITION_STATUS_TRUE:
            out.print(f"[yellow]{escape(condition.type)}[/yellow]: {escape(condition.message)}")
    if job.HasField("failure"):
        show_failure(job)
    print_environment(attempts)
    if len(attempts) > 1 or any(attempt.HasField("failure") for attempt in attempts):
        out.print()
        print_attempts(attempts)
    print_samples(job)


def print_environment(attempts: Sequence[state_pb2.Attempt]) -> None:
    """Prints what the newest attempt that told of it computes with, and what each before it had otherwise."""
    told = [attempt for attempt in attempts if attempt.environment]
    if not told:
        return
    newest = told[0].environment
    rows = [("environment", ", ".join(f"{name} {newest[name]}" for name in sorted(newest)))]
    for attempt in told[1:]:
        theirs = attempt.environment
        other = [
            f"{name} {theirs.get(name) or '-'}"
            for name in sorted({*newest, *theirs})
            if theirs.get(name) != newest.get(name)
        ]
        rows.append((f"in attempt {attempt.epoch}", ", ".join(other)))
    print_facts((name, escape(text.one_line(words))) for name, words in rows)


def print_samples(job: jobs_pb2.Job) -> None:
    """Prints each prompt with the answers before and after training."""
    out = console()
    for sample in job.samples:
        out.print(f"\n[bold]?[/bold] {escape(sample.prompt)}")
        out.print(f"[dim]before[/dim]  {_answer(sample.before)}")
        if sample.after or job.state == state_pb2.JOB_STATE_SUCCEEDED:
            out.print(f"[green]after [/green]  {_answer(sample.after)}")


def _answer(words: str) -> str:
    return escape(text.one_line(words)) or "[dim](an empty answer)[/dim]"


def print_attempts(attempts: Sequence[state_pb2.Attempt]) -> None:
    """Prints the attempts of a job as a table."""
    print_table(
        ["ATTEMPT", "STATE", "NODES", "FROM STEP", "FROM", "LOST", "BEGAN", "WHY IT ENDED"],
        [
            (
                str(attempt.epoch),
                names.short(_ATTEMPT_STATES, attempt.state),
                ", ".join(names.last_part(node) for node in attempt.nodes),
                str(attempt.resumed_step),
                attempt.resumed_from or "-",
                text.duration(attempt.lost_seconds) if attempt.lost_seconds else "-",
                text.ago(attempt.start_time),
                escape(_failure(attempt)),
            )
            for attempt in attempts
        ],
        "no attempts yet",
    )


def _failure(attempt: state_pb2.Attempt) -> str:
    if not attempt.HasField("failure"):
        return ""
    return f"{names.short(_CLASSES, attempt.failure.failure_class)}: {attempt.failure.message}"


def _dataset(job: jobs_pb2.Job) -> str:
    parent, _, number = job.dataset.name.rpartition("/versions/")
    return f"{names.last_part(parent)}@{number}" if parent else job.spec.dataset


def _training(job: jobs_pb2.Job) -> str:
    adapter, training = job.spec.adapter, job.spec.training
    kind = f"LoRA r={adapter.lora.r}" if adapter.WhichOneof("kind") != "full" else "full"
    length = f"{training.max_steps} steps" if training.max_steps else f"{training.num_epochs:g} epochs"
    batch = training.micro_batch_size * max(training.gradient_accumulation_steps, 1)
    return f"{kind}, {length}, batch {batch}, learning rate {training.learning_rate:g}"


def _progress(job: jobs_pb2.Job) -> str:
    done = job.progress
    if not done.total_steps:
        return f"step {done.step:,}" if done.step else ""
    left = "" if job.terminal or not done.HasField("eta") else text.duration(done.eta.ToSeconds()) + " left"
    pace = f"{done.tokens_per_second:,.0f} tokens/s" if done.tokens_per_second else ""
    parts = [
        f"step {done.step:,} of {done.total_steps:,} ({text.percent(job)})",
        f"epoch {done.epoch:.2f}" if not job.spec.HasField("external") else "",
        pace,
        left,
    ]
    return ", ".join(part for part in parts if part)


def _trains(job: jobs_pb2.Job) -> bool:
    spec = job.spec
    return not (spec.HasField("evaluation") or spec.HasField("export") or spec.HasField("external"))


def _config(job: jobs_pb2.Job) -> str:
    config = job.spec.external.config
    return " ".join(f"{key}={text.one_line(config[key])}" for key in sorted(config))


def _loss(job: jobs_pb2.Job) -> str:
    if not job.progress.step or not (_trains(job) or job.progress.first_loss):
        return ""
    held_out = f", held out {text.loss(job.progress.eval_loss)}" if job.progress.HasField("eval_loss") else ""
    return f"{text.loss(job.progress.first_loss)} → {text.loss(job.progress.loss)}{held_out}"


def _checkpoint(job: jobs_pb2.Job) -> str:
    if not job.HasField("checkpoint"):
        return ""
    point = job.checkpoint
    return f"step {point.step}, {text.size(point.size_bytes)}, {text.ago(point.create_time)}"


def _origin(job: jobs_pb2.Job) -> str:
    if not job.HasField("forked_from"):
        return ""
    return f"{names.last_part(job.forked_from.job)} at step {job.forked_from.step}"


def _model(name: str) -> str:
    parent, _, number = name.rpartition("/versions/")
    return f"{names.last_part(parent)}@{number}" if parent else ""


def _took(job: jobs_pb2.Job) -> str:
    if not (job.end_time.seconds and job.create_time.seconds):
        return ""
    return text.duration(job.end_time.ToNanoseconds() / 1e9 - job.create_time.ToNanoseconds() / 1e9)
