"""Job specs: defaults filled in, so that the frozen spec says everything the trainer does."""

import hashlib
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from tunesmith.api.jobs.v1 import spec_pb2 as spec
from tunesmith.errors import InvalidArgument
from tunesmith_jobs import tasks

DEFAULT_MAX_INFRA_RETRIES = 10
DEFAULT_UNREACHABLE_GRACE_SECONDS = 10
DEFAULT_STOP_SECONDS = 60
_LONGEST = timedelta(days=3653)
DEFAULT_MAX_SKIPPED_STEPS = 10
DEFAULT_CHECKPOINT_OVERHEAD = 0.01


def complete(asked: spec.JobSpec) -> spec.JobSpec:
    """Returns a copy of `asked` with every default filled in.

    Raises:
        InvalidArgument: fields contradict each other.
    """
    if asked.HasField("external"):
        raise _inconsistent(
            "external", "set", "is for programs that run already", "begin the run with StartExternalRun"
        )
    full = _filled(asked)
    if not tasks.trains(full):
        plain = _filled(spec.JobSpec(evaluation=full.evaluation if full.HasField("evaluation") else None))
        tasks.check_unused(asked, full, plain)
    return full


def _filled(asked: spec.JobSpec) -> spec.JobSpec:
    full = spec.JobSpec()
    full.CopyFrom(asked)
    tasks.complete(full)
    full.experiment = full.experiment or "job"
    full.method = full.method or spec.METHOD_SFT
    full.output.model = full.output.model or full.experiment
    _complete_adapter(full.adapter)
    _complete_training(full.training, is_full=full.adapter.HasField("full"))
    full.resources.num_nodes = full.resources.num_nodes or 1
    if not full.retry.HasField("max_infra_retries"):
        full.retry.max_infra_retries = DEFAULT_MAX_INFRA_RETRIES
    if not full.retry.HasField("unreachable_grace"):
        full.retry.unreachable_grace.seconds = DEFAULT_UNREACHABLE_GRACE_SECONDS
    _complete_processes(full.resources, full.training)
    if not full.deadlines.HasField("stop"):
        full.deadlines.stop.seconds = DEFAULT_STOP_SECONDS
    _check_durations(full)
    _check(full.training)
    return full


def digest(full: spec.JobSpec) -> str:
    """Returns the SHA-256 of a completed spec, without what may change while the job runs."""
    fixed = spec.JobSpec()
    fixed.CopyFrom(full)
    fixed.ClearField("labels")
    fixed.ClearField("deadlines")
    fixed.resources.ClearField("priority")
    return hashlib.sha256(fixed.SerializeToString(deterministic=True)).hexdigest()


def positive(value: Duration, field: str) -> timedelta:
    """Returns a duration.

    Raises:
        InvalidArgument: it is not longer than zero.
    """
    problem = "is longer than ten years" if value.seconds > _LONGEST.total_seconds() else ""
    if not problem and value.ToTimedelta() <= timedelta():
        problem = "must be longer than 0 s"
    if problem:
        raise InvalidArgument(
            "SPEC_INCONSISTENT" if field.startswith("spec.") else "FIELD_INVALID",
            f"{field} {problem}",
            field=field,
            value=value.ToJsonString() if abs(value.seconds) <= _LONGEST.total_seconds() else value.seconds,
            remedy="give a time such as 30s, or leave it out",
        )
    return value.ToTimedelta()


def _complete_processes(resources: spec.ResourceSpec, training: spec.TrainingSpec) -> None:
    if resources.num_nodes > 1 and resources.node:
        raise _inconsistent(
            "resources.num_nodes",
            resources.num_nodes,
            "is more than 1, but spec.resources.node names a single one",
            "use labels (resources.node_labels) to name several nodes",
        )
    resources.processes_per_node = resources.processes_per_node or max(1, resources.gpus_per_node)
    world_size = resources.num_nodes * resources.processes_per_node
    if resources.gpus_per_node and resources.processes_per_node != resources.gpus_per_node:
        raise _inconsistent(
            "resources.processes_per_node",
            resources.processes_per_node,
            "must be the number of GPUs on each node: a process uses one",
            f"use {resources.gpus_per_node}, or leave it out",
        )
    training.logical_shards = training.logical_shards or world_size
    if training.logical_shards % world_size:
        raise _inconsistent(
            "training.logical_shards",
            training.logical_shards,
            f"is no multiple of the {world_size} processes, so they cannot share the shards evenly",
            f"use {-(-training.logical_shards // world_size) * world_size}, or leave it out",
        )


def _check_durations(full: spec.JobSpec) -> None:
    grace = full.retry.unreachable_grace
    if grace.seconds or grace.nanos:  # none at all is fine: replaced as soon as the lease expires
        positive(grace, "spec.retry.unreachable_grace")
    if full.retry.HasField("stall_timeout"):
        positive(full.retry.stall_timeout, "spec.retry.stall_timeout")
    for known, value in full.deadlines.ListFields():
        positive(value, f"spec.deadlines.{known.name}")


def _inconsistent(field: str, value: object, problem: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(
        "SPEC_INCONSISTENT", f"spec.{field} {problem}", field=f"spec.{field}", value=value, remedy=remedy
    )


def _complete_adapter(adapter: spec.AdapterSpec) -> None:
    if not adapter.HasField("kind"):
        adapter.lora.SetInParent()
    if adapter.HasField("lora"):
        adapter.lora.r = adapter.lora.r or 8
        adapter.lora.alpha = adapter.lora.alpha or 2.0 * adapter.lora.r


def _complete_training(training: spec.TrainingSpec, is_full: bool) -> None:
    if not training.max_steps and not training.num_epochs:
        training.num_epochs = 1
    training.micro_batch_size = training.micro_batch_size or 4
    training.gradient_accumulation_steps = training.gradient_accumulation_steps or 1
    if not training.HasField("learning_rate"):
        training.learning_rate = 2e-5 if is_full else 2e-4
    training.lr_scheduler = training.lr_scheduler or spec.LR_SCHEDULER_COSINE
    if not training.HasField("max_grad_norm"):
        training.max_grad_norm = 1.0
    training.max_length = training.max_length or 512
    training.precision = training.precision or spec.PRECISION_FLOAT32
    training.keep_checkpoints = training.keep_checkpoints or 2
    if training.HasField("answers"):
        tasks.complete_answers(training.answers)
    training.log_every_steps = training.log_every_steps or 1
    training.gradient_sync = training.gradient_sync or spec.GRADIENT_SYNC_EXACT
    training.nan_policy = training.nan_policy or spec.NAN_POLICY_STOP
    training.max_skipped_steps = training.max_skipped_steps or DEFAULT_MAX_SKIPPED_STEPS
    training.snapshots = training.snapshots or spec.SNAPSHOT_MODE_STEP
    if not training.HasField("max_checkpoint_overhead"):
        training.max_checkpoint_overhead = DEFAULT_CHECKPOINT_OVERHEAD


def _check(training: spec.TrainingSpec) -> None:
    if training.eval_every_steps and not training.eval_fraction:
        raise _inconsistent(
            "training.eval_fraction",
            training.eval_fraction,
            "is 0, but spec.training.eval_every_steps needs held-out data",
            "set eval_fraction, for example to 0.05, or eval_every_steps to 0",
        )
    if training.HasField("answers"):
        tasks.check_answers(training)
    for name in ("early_stopping_patience", "keep_best_checkpoints"):
        if getattr(training, name) and not training.eval_every_steps:
            raise _inconsistent(
                f"training.{name}",
                getattr(training, name),
                "needs evaluations to judge by",
                f"set eval_every_steps and eval_fraction, or {name} to 0",
            )
    if training.early_stopping_min_delta and not training.early_stopping_patience:
        raise _inconsistent(
            "training.early_stopping_min_delta",
            training.early_stopping_min_delta,
            "has no effect without early_stopping_patience",
            "set early_stopping_patience too, or leave it out",
        )
    if training.max_steps and training.warmup_steps > training.max_steps:
        raise _inconsistent(
            "training.warmup_steps",
            training.warmup_steps,
            "is larger than max_steps",
            f"use at most {training.max_steps}",
        )
