"""Checkpoints: all that a run needs to go on with the same bits, as an artifact of safetensors and JSON."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith_trainer import artifact
from tunesmith_trainer.artifact import Artifact, DamagedError
from tunesmith_trainer.failure import FailureClass, TrainerError, resume_mismatch
from tunesmith_trainer.report import Reporter, log, span

Tensors = dict[str, torch.Tensor]
_WEIGHTS, _OPTIMIZER, _STATE = "trainable.safetensors", "optimizer.safetensors", "state.json"


@dataclass(slots=True)
class Progress:
    """Where a run stands between two steps, and the sums it has not reported yet."""

    step: int = 0
    micro_step: int = 0
    samples: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    loss_weight: int = 0
    first_loss: float | None = None
    loss: float | None = None
    grad_norm: float | None = None
    eval_loss: float | None = None
    best_eval_loss: float | None = None
    evaluated_step: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """What a checkpoint belongs to. Going on with any of it changed would give other bits."""

    spec_digest: str
    base_model_digest: str
    dataset_digest: str
    environment: Mapping[str, str]

    @property
    def properties(self) -> dict[str, str]:
        """The same as texts, for a manifest."""
        return {
            "spec_digest": self.spec_digest,
            "base_model_digest": self.base_model_digest,
            "dataset_digest": self.dataset_digest,
            "fingerprint": artifact.canonical_json(dict(self.environment)).decode(),
        }

    def check(self, saved: Mapping[str, Any]) -> None:
        """Raise RESUME_MISMATCH naming the first item that differs."""
        for name in ("spec_digest", "base_model_digest", "dataset_digest"):
            if saved.get(name) != getattr(self, name):
                raise resume_mismatch(name, saved.get(name), getattr(self, name))
        environment = saved.get("environment") or {}
        for name in sorted({*environment, *self.environment}):
            if environment.get(name) != self.environment.get(name):
                raise resume_mismatch(
                    f"fingerprint.{name}", environment.get(name), self.environment.get(name)
                )


class TrainedState:
    """The trained tensors and AdamW's moments, read and written by name."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self._parameters = parameters
        self._optimizer = optimizer

    def copy(self) -> tuple[Tensors, Tensors]:
        """Copies on the CPU of the weights and of the optimizer's state; the run may go on at once."""
        weights = {name: _copy(item.detach()) for name, item in self._parameters.items()}
        moments: Tensors = {}
        for name, parameter in self._parameters.items():
            # A parameter that never got a gradient (an expert never chosen) has no state.
            for key, value in self._optimizer.state.get(parameter, {}).items():
                moments[f"{key}.{name}"] = _copy(value)
        return weights, moments

    def restore(self, weights: Tensors, moments: Tensors) -> None:
        """Set what `copy` gave. Values go into freshly allocated memory: kernels may round by alignment."""
        shapes = {name: tuple(item.shape) for name, item in self._parameters.items()}
        saved = {name: tuple(item.shape) for name, item in weights.items()}
        for name in sorted({*shapes, *saved}):
            if shapes.get(name) != saved.get(name):
                raise resume_mismatch(f"tensor.{name}", saved.get(name), shapes.get(name))
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
        self._optimizer.state.clear()
        for full, value in moments.items():
            key, _, name = full.partition(".")
            parameter = self._parameters[name]
            self._optimizer.state[parameter][key] = torch.empty_like(value, device=parameter.device).copy_(
                value
            )


def _copy(value: torch.Tensor) -> torch.Tensor:
    return value.to("cpu", copy=True).contiguous()


class Checkpoints:
    """The checkpoints of a run folder. Writing happens beside the run, in one thread at a time."""

    def __init__(self, folder: Path, identity: Identity, keep: int, reporter: Reporter) -> None:
        self._folder = folder
        self.identity = identity
        self._keep = keep
        self._reporter = reporter
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.saved_step = -1
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.tmp"):
            shutil.rmtree(left, ignore_errors=True)

    def save(self, state: TrainedState, progress: Progress, epoch: float) -> None:
        """Begin to write a checkpoint of the present step; the state is copied before this returns."""
        self.wait()
        if self.saved_step == progress.step:
            return
        weights, moments = state.copy()
        record = {
            "version": 1,
            "progress": asdict(progress),
            "spec_digest": self.identity.spec_digest,
            "base_model_digest": self.identity.base_model_digest,
            "dataset_digest": self.identity.dataset_digest,
            "environment": dict(self.identity.environment),
        }
        properties = {"step": str(progress.step), "epoch": f"{epoch:.6g}", **self.identity.properties}

        def fill(folder: Path) -> None:
            save_file(weights, folder / _WEIGHTS)
            save_file(moments, folder / _OPTIMIZER)
            (folder / _STATE).write_bytes(artifact.canonical_json(record))

        self.saved_step = progress.step
        self._thread = threading.Thread(
            target=self._write, args=(progress.step, properties, fill), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk; raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise if the checkpoint being written has failed; costs nothing else."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def newest(self, given: Path | None, digest: str) -> tuple[Progress, Tensors, Tensors] | None:
        """The newest undamaged checkpoint of this folder or the given one; None when there is none at all.

        Raises RESUME_MISMATCH if it belongs to something else, INFRA if the given one is damaged and the
        folder has none: starting anew then would silently throw work away.
        """
        found = sorted(self._candidates(given), reverse=True)
        for step, own, path in found:
            try:
                artifact.verify(path, "" if own else digest)
                loaded = self._read(path)
            except DamagedError as error:
                log(
                    self._reporter,
                    "warning",
                    f"the checkpoint of step {step} is damaged and skipped: {error}",
                )
                continue
            self.saved_step = step if own else -1
            return loaded
        if given is not None:
            raise TrainerError(
                FailureClass.INFRA, "CHECKPOINT_DAMAGED", f"{given} is damaged", "fetch the checkpoint again"
            )
        return None

    def _candidates(self, given: Path | None) -> Iterator[tuple[int, bool, Path]]:
        yield from ((step, True, path) for step, path in self._own())
        if given is not None:
            try:
                record = json.loads((given / _STATE).read_bytes())
                yield int(record["progress"]["step"]), False, given
            except (OSError, ValueError, KeyError, TypeError):
                yield -1, False, given  # verification will tell what is wrong with it

    def _own(self) -> list[tuple[int, Path]]:
        names = ((re.fullmatch(r"step-(\d{8,})", item.name), item) for item in self._folder.iterdir())
        return [
            (int(match[1]), item) for match, item in names if match and (item / artifact.MANIFEST).exists()
        ]

    def _read(self, path: Path) -> tuple[Progress, Tensors, Tensors]:
        try:
            record = json.loads((path / _STATE).read_bytes())
            self.identity.check(record)
            known = {field.name for field in fields(Progress)}
            progress = Progress(**{key: value for key, value in record["progress"].items() if key in known})
            return progress, load_file(path / _WEIGHTS), load_file(path / _OPTIMIZER)
        except TrainerError:
            raise
        except Exception as error:  # hashes hold, so it was written by something else
            raise DamagedError(f"{path} cannot be read: {error!r}") from error

    def _write(self, step: int, properties: dict[str, str], fill: Callable[[Path], None]) -> None:
        try:
            with span(self._reporter, "checkpoint", step=step):
                made = artifact.write(self._folder / f"step-{step:08d}", "checkpoint", properties, fill)
            self._announce(made, step)
            for _, path in sorted(self._own())[: -1 - self._keep]:
                shutil.rmtree(path, ignore_errors=True)
        except BaseException as error:  # raised in the main thread by check()
            self._error = error

    def _announce(self, made: Artifact, step: int) -> None:
        path = f"{self._folder.name}/{made.path.name}"
        self._reporter.event(
            "checkpoint", path=path, step=step, digest=made.digest, size_bytes=made.size_bytes
        )
