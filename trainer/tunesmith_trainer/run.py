"""run.json as frozen dataclasses. Every error names the field, its value and what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from tunesmith_trainer.failure import invalid_input
from tunesmith_trainer.fields import Fields


class Task(StrEnum):
    """What an attempt does, by the part of the spec that says so."""

    TRAIN = "training"
    EVALUATE = "evaluation"
    EXPORT = "export"


class Scheduler(StrEnum):
    """Course of the learning rate after warm-up."""

    COSINE = "LR_SCHEDULER_COSINE"
    LINEAR = "LR_SCHEDULER_LINEAR"
    CONSTANT = "LR_SCHEDULER_CONSTANT"


class Precision(StrEnum):
    """Number format of the forward and backward pass."""

    FLOAT32 = "PRECISION_FLOAT32"
    BFLOAT16 = "PRECISION_BFLOAT16"


class GradientSync(StrEnum):
    """How the gradients of several ranks are summed."""

    EXACT = "GRADIENT_SYNC_EXACT"
    FAST = "GRADIENT_SYNC_FAST"


class NanPolicy(StrEnum):
    """What a loss or gradient that is not finite is answered with."""

    STOP = "NAN_POLICY_STOP"
    SKIP = "NAN_POLICY_SKIP"


class SnapshotMode(StrEnum):
    """How often the state is copied into memory that outlives the process."""

    STEP = "SNAPSHOT_MODE_STEP"
    MICRO_STEP = "SNAPSHOT_MODE_MICRO_STEP"
    OFF = "SNAPSHOT_MODE_OFF"


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters; no target modules means all linear layers but the head."""

    r: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Training:
    """Hyperparameters; names and meanings are those of TrainingSpec in spec.proto."""

    num_epochs: float
    max_steps: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    lr_scheduler: Scheduler
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    seed: int
    max_length: int
    precision: Precision
    checkpoint_every_steps: int
    keep_checkpoints: int
    eval_every_steps: int
    eval_fraction: float
    log_every_steps: int
    num_threads: int
    logical_shards: int
    gradient_sync: GradientSync
    packing: bool
    neftune_noise_alpha: float
    word_dropout: float
    early_stopping_patience: int
    early_stopping_min_delta: float
    nan_policy: NanPolicy
    max_skipped_steps: int
    snapshots: SnapshotMode
    keep_best_checkpoints: int
    max_checkpoint_overhead: float

    def divided(self, divisor: int) -> Training:
        """The same steps in micro-batches of at most a `divisor`-th of the size, and as many more of them."""
        examples = self.micro_batch_size * self.gradient_accumulation_steps
        wanted = max(1, self.micro_batch_size // divisor)
        size = next(size for size in range(wanted, 0, -1) if examples % size == 0)
        return replace(self, micro_batch_size=size, gradient_accumulation_steps=examples // size)


@dataclass(frozen=True, slots=True)
class Spec:
    """What the trainer needs of JobSpec. `lora` None: every parameter is trained."""

    base_model: str
    method: str
    lora: Lora | None
    training: Training
    sample_prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """An input folder and the digest it must have."""

    path: Path
    digest: str


@dataclass(frozen=True, slots=True)
class Target:
    """What is evaluated or exported; without a source it is the base model itself."""

    name: str
    source: Source | None


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt: the folder it works in and what to do there."""

    folder: Path
    job: str
    epoch: int
    rank: int
    world_size: int
    local_world_size: int
    rendezvous: str
    spec: Spec
    raw_spec: Mapping[str, Any]
    spec_digest: str
    base_model: Source
    dataset: Source
    checkpoint: Source | None
    answered: frozenset[str]
    gpus: tuple[str, ...]
    snapshots: Path | None
    forked: bool
    accept_drift: bool
    micro_batch_divisor: int
    targets: tuple[Target, ...]
    judges: Path | None
    prompt_template: Source | None
    gpu_peak_tflops: float = 0.0  # of one GPU; 0: by its name

    @property
    def task(self) -> Task:
        """What the attempt does."""
        others = (Task.EVALUATE, Task.EXPORT)
        return next((task for task in others if self.raw_spec.get(task) is not None), Task.TRAIN)


def load(folder: Path, rank: int = 0) -> Run:
    """Read run.json of a run folder, for one rank of its group."""
    path = folder / "run.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise invalid_input(
            "RUN_FOLDER_INVALID", f"{path} cannot be read: {error}", "give the path of a run folder"
        ) from error
    fields = Fields(raw, "run.json")
    if (version := fields.integer("version")) != 1:
        raise fields.error("version", version, "this trainer understands version 1; use a matching agent")
    checkpoint = raw.get("checkpoint")
    samples = raw.get("samples") or []
    world_size = max(1, fields.integer("world_size", default=1))
    if rank >= world_size:
        raise fields.error("world_size", world_size, f"rank {rank} was started; give at least {rank + 1}")
    divisor = max(1, fields.integer("micro_batch_divisor", default=1))
    return Run(
        folder=folder,
        job=fields.text("job"),
        epoch=fields.integer("epoch", default=1),
        rank=rank,
        world_size=world_size,
        local_world_size=fields.integer("local_world_size", default=world_size, least=1),
        rendezvous=str(raw.get("rendezvous") or ""),
        spec=_spec(fields.part("spec"), world_size, divisor),
        raw_spec=raw.get("spec") or {},
        spec_digest=fields.text("spec_digest"),
        base_model=_source(fields.part("base_model")),
        # An export needs no data.
        dataset=_source(fields.part("dataset")) if raw.get("dataset") else Source(Path(), ""),
        checkpoint=_source(fields.part("checkpoint")) if checkpoint else None,
        answered=frozenset(str(item["prompt"]) for item in samples if item.get("before") is not None),
        gpus=tuple(str(gpu) for gpu in raw.get("gpus") or ()),
        snapshots=Path(fields.text("snapshots")) if raw.get("snapshots") else None,
        forked=fields.flag("forked"),
        accept_drift=fields.flag("accept_drift"),
        micro_batch_divisor=divisor,
        targets=tuple(_target(part) for part in fields.parts("targets")),
        judges=Path(fields.text("judges")) if raw.get("judges") else None,
        prompt_template=_source(fields.part("prompt_template")) if raw.get("prompt_template") else None,
        gpu_peak_tflops=fields.number("gpu_peak_tflops"),
    )


def _target(fields: Fields) -> Target:
    name = fields.text("name", required=True)
    return Target(name, _source(fields) if fields.text("digest") else None)


def _source(fields: Fields) -> Source:
    return Source(Path(fields.text("path", required=True)), fields.text("digest"))


def _spec(fields: Fields, world_size: int, divisor: int) -> Spec:
    lora = lora_of(fields)
    method = fields.text("method")
    return Spec(
        base_model=fields.text("base_model", required=True),
        method="METHOD_SFT" if method in ("", "METHOD_UNSPECIFIED") else method,
        lora=lora,
        training=_training(fields.part("training"), lora is not None, world_size).divided(divisor),
        sample_prompts=fields.texts("sample_prompts"),
    )


def lora_of(spec: Fields) -> Lora | None:
    """The adapter that a job's spec asks for; None: every parameter is trained."""
    adapter = spec.part("adapter")
    return None if adapter.has("full") else _lora(adapter.part("lora"))


def _lora(fields: Fields) -> Lora:
    r = fields.integer("r", default=8, least=1)
    return Lora(
        r=r,
        alpha=fields.number("alpha", default=2.0 * r),
        dropout=fields.number("dropout", below=1),
        target_modules=fields.texts("target_modules"),
    )


def _training(fields: Fields, with_lora: bool, world_size: int = 1) -> Training:
    training = Training(
        num_epochs=fields.number("num_epochs", default=1),
        max_steps=fields.integer("max_steps"),
        micro_batch_size=fields.integer("micro_batch_size", default=4, least=1),
        gradient_accumulation_steps=fields.integer("gradient_accumulation_steps", default=1, least=1),
        learning_rate=fields.number("learning_rate", default=2e-4 if with_lora else 2e-5),
        lr_scheduler=fields.choice("lr_scheduler", Scheduler),
        warmup_steps=fields.integer("warmup_steps"),
        weight_decay=fields.number("weight_decay"),
        max_grad_norm=fields.number("max_grad_norm", default=1),
        seed=fields.integer("seed"),
        max_length=fields.integer("max_length", default=512, least=2),
        precision=fields.choice("precision", Precision),
        checkpoint_every_steps=fields.integer("checkpoint_every_steps"),
        keep_checkpoints=fields.integer("keep_checkpoints"),
        eval_every_steps=fields.integer("eval_every_steps"),
        eval_fraction=fields.number("eval_fraction", below=1),
        log_every_steps=fields.integer("log_every_steps", default=1, least=1),
        num_threads=fields.integer("num_threads"),
        logical_shards=fields.integer("logical_shards") or world_size,
        gradient_sync=fields.choice("gradient_sync", GradientSync),
        packing=fields.flag("packing"),
        neftune_noise_alpha=fields.number("neftune_noise_alpha"),
        word_dropout=fields.number("word_dropout", below=1),
        early_stopping_patience=fields.integer("early_stopping_patience"),
        early_stopping_min_delta=fields.number("early_stopping_min_delta"),
        nan_policy=fields.choice("nan_policy", NanPolicy),
        max_skipped_steps=fields.integer("max_skipped_steps") or 10,
        snapshots=fields.choice("snapshots", SnapshotMode),
        keep_best_checkpoints=fields.integer("keep_best_checkpoints"),
        max_checkpoint_overhead=fields.number("max_checkpoint_overhead", default=0.01) or 0.01,
    )
    if training.max_steps == 0 and training.num_epochs == 0:
        raise fields.error("num_epochs", 0, "set num_epochs or max_steps above 0")
    if training.eval_every_steps and not training.eval_fraction:
        raise fields.error("eval_fraction", 0, "hold out a part of the data, or set eval_every_steps to 0")
    for name in ("early_stopping_patience", "keep_best_checkpoints"):
        if getattr(training, name) and not training.eval_every_steps:
            raise fields.error(name, getattr(training, name), "set eval_every_steps, or this to 0")
    if training.logical_shards % world_size:
        raise fields.error(
            "logical_shards", training.logical_shards, f"give a multiple of the {world_size} processes"
        )
    return training
