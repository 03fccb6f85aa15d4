"""run.json as frozen dataclasses. Every error names the field, its value and what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from tunesmith_trainer.failure import TrainerError, invalid_input

E = TypeVar("E", bound=StrEnum)


class Scheduler(StrEnum):
    """Course of the learning rate after warm-up."""

    COSINE = "LR_SCHEDULER_COSINE"
    LINEAR = "LR_SCHEDULER_LINEAR"
    CONSTANT = "LR_SCHEDULER_CONSTANT"


class Precision(StrEnum):
    """Number format of the forward and backward pass."""

    FLOAT32 = "PRECISION_FLOAT32"
    BFLOAT16 = "PRECISION_BFLOAT16"


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
class Run:
    """One attempt: the folder it works in and what to do there."""

    folder: Path
    job: str
    spec: Spec
    spec_digest: str
    base_model: Source
    dataset: Source
    checkpoint: Source | None
    answered: frozenset[str]
    gpus: tuple[str, ...]


def load(folder: Path) -> Run:
    """Read run.json of a run folder."""
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
    if fields.integer("world_size", default=1) != 1:
        raise fields.error("world_size", raw["world_size"], "this trainer serves one process a job")
    checkpoint = raw.get("checkpoint")
    samples = raw.get("samples") or []
    return Run(
        folder=folder,
        job=fields.text("job"),
        spec=_spec(fields.part("spec")),
        spec_digest=fields.text("spec_digest"),
        base_model=_source(fields.part("base_model")),
        dataset=_source(fields.part("dataset")),
        checkpoint=_source(fields.part("checkpoint")) if checkpoint else None,
        answered=frozenset(str(item["prompt"]) for item in samples if item.get("before") is not None),
        gpus=tuple(str(gpu) for gpu in raw.get("gpus") or ()),
    )


def _source(fields: Fields) -> Source:
    return Source(Path(fields.text("path", required=True)), fields.text("digest"))


def _spec(fields: Fields) -> Spec:
    adapter = fields.part("adapter")
    lora = None if adapter.has("full") else _lora(adapter.part("lora"))
    method = fields.text("method")
    return Spec(
        base_model=fields.text("base_model", required=True),
        method="METHOD_SFT" if method in ("", "METHOD_UNSPECIFIED") else method,
        lora=lora,
        training=_training(fields.part("training"), lora is not None),
        sample_prompts=fields.texts("sample_prompts"),
    )


def _lora(fields: Fields) -> Lora:
    r = fields.integer("r", default=8, least=1)
    return Lora(
        r=r,
        alpha=fields.number("alpha", default=2.0 * r),
        dropout=fields.number("dropout", below=1),
        target_modules=fields.texts("target_modules"),
    )


def _training(fields: Fields, with_lora: bool) -> Training:
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
    )
    if training.max_steps == 0 and training.num_epochs == 0:
        raise fields.error("num_epochs", 0, "set num_epochs or max_steps above 0")
    if training.eval_every_steps and not training.eval_fraction:
        raise fields.error("eval_fraction", 0, "hold out a part of the data, or set eval_every_steps to 0")
    return training


class Fields:
    """A JSON object read field by field. proto3 JSON has 64-bit integers as strings; both are read."""

    def __init__(self, value: object, path: str) -> None:
        self._path = path
        if not isinstance(value, Mapping):
            raise invalid_input(
                "RUN_FOLDER_INVALID", f"{path} is {value!r}, not a JSON object", "write it as an object"
            )
        self._value: Mapping[str, Any] = value

    def error(self, name: str, value: object, remedy: str) -> TrainerError:
        """The error that names a field and its value."""
        return invalid_input("FIELD_INVALID", f"{self._path}.{name} is {value!r}", remedy)

    def has(self, name: str) -> bool:
        """Whether the field is there."""
        return name in self._value

    def part(self, name: str) -> Fields:
        """A field that is an object; absent or null gives an empty one."""
        return Fields(self._value.get(name) or {}, f"{self._path}.{name}")

    def text(self, name: str, *, required: bool = False) -> str:
        """A text; absent gives an empty one."""
        value = self._value.get(name, "")
        if not isinstance(value, str) or (required and not value):
            raise self.error(name, value, "give a text that is not empty")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; absent or null gives none."""
        value = self._value.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, value, "give a list of texts")
        return tuple(value)

    def integer(self, name: str, *, default: int = 0, least: int = 0) -> int:
        """A whole number of at least `least`."""
        value = self._value.get(name, default)
        try:
            number = int(value)
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                raise ValueError
        except (TypeError, ValueError, OverflowError) as error:
            raise self.error(name, value, "give a whole number") from error
        if number < least:
            raise self.error(name, value, f"give at least {least}")
        return number

    def number(self, name: str, *, default: float = 0.0, below: float = math.inf) -> float:
        """A number from 0 to below `below`."""
        value = self._value.get(name, default)
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise self.error(name, value, "give a number") from error
        if not 0 <= number < below:
            raise self.error(name, value, f"give a number from 0 to below {below}")
        return number

    def choice(self, name: str, kind: type[E]) -> E:
        """An enum by its proto name; absent or UNSPECIFIED gives the first member, the proto's default."""
        value = self._value.get(name) or ""
        if value == "" or str(value).endswith("_UNSPECIFIED"):
            return next(iter(kind))
        try:
            return kind(value)
        except ValueError as error:
            raise self.error(name, value, f"use one of {', '.join(kind)}") from error
