"""Job specs: defaults filled in, so that the frozen spec says everything the trainer does."""

import hashlib

from tunesmith.api.jobs.v1 import spec_pb2 as spec
from tunesmith.errors import InvalidArgument

DEFAULT_MAX_INFRA_RETRIES = 10
DEFAULT_UNREACHABLE_GRACE_SECONDS = 10


def complete(asked: spec.JobSpec) -> spec.JobSpec:
    """Returns a copy of `asked` with every default filled in.

    Raises:
        InvalidArgument: fields contradict each other.
    """
    full = spec.JobSpec()
    full.CopyFrom(asked)
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
    if full.retry.unreachable_grace.ToTimedelta().total_seconds() < 0:
        raise InvalidArgument(
            "SPEC_INCONSISTENT",
            "spec.retry.unreachable_grace is negative",
            field="spec.retry.unreachable_grace",
            value=full.retry.unreachable_grace.ToJsonString(),
            remedy="give a duration of 0s or more",
        )
    _check(full.training)
    return full


def digest(full: spec.JobSpec) -> str:
    """Returns the SHA-256 of a completed spec."""
    return hashlib.sha256(full.SerializeToString(deterministic=True)).hexdigest()


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
    training.log_every_steps = training.log_every_steps or 1


def _check(training: spec.TrainingSpec) -> None:
    if training.eval_every_steps and not training.eval_fraction:
        raise InvalidArgument(
            "SPEC_INCONSISTENT",
            "spec.training.eval_every_steps needs held-out data",
            field="spec.training.eval_fraction",
            value=training.eval_fraction,
            remedy="set eval_fraction, for example to 0.05, or eval_every_steps to 0",
        )
    if training.max_steps and training.warmup_steps > training.max_steps:
        raise InvalidArgument(
            "SPEC_INCONSISTENT",
            "spec.training.warmup_steps is larger than max_steps",
            field="spec.training.warmup_steps",
            value=training.warmup_steps,
            remedy=f"use at most {training.max_steps}",
        )
