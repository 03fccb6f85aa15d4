"""The targets of an evaluation in memory, one after the other: the base model stays, adapters are swapped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tunesmith_trainer import adapters, artifact
from tunesmith_trainer.adapters import Swap
from tunesmith_trainer.artifact import DamagedError
from tunesmith_trainer.failure import FailureClass, TrainerError, invalid_input
from tunesmith_trainer.run import Run, Source, Target
from tunesmith_trainer.writer import STATE


class Stage:
    """Puts targets on, one at a time."""

    def __init__(self, run: Run, device: torch.device, dtype: torch.dtype) -> None:
        self._run, self._device, self._dtype = run, device, dtype
        self._swap: Swap | None = None
        self._full = ""  # digest of the whole model that is loaded instead of the base

    def put_on(self, target: Target) -> Swap:
        """The model of a target, ready to answer.

        Raises TrainerError: INVALID_INPUT when it does not fit the base model, INFRA when this node's copy of
        it is damaged.
        """
        if target.source is None:
            swap = self._base()
            swap.use("")
            return swap
        with steady((target.source, target.name)):
            return self._load(target.source)

    def _load(self, source: Source) -> Swap:
        folder = source.path
        if not adapters.is_full(folder):
            swap = self._base()
            swap.use(source.digest, folder)
            return swap
        self._swap = None  # first, for two whole models may not fit
        checkpoint = (folder / STATE).exists()
        base = self._run.base_model.path
        if checkpoint:
            self._swap = adapters.load_full(base, folder, self._device, self._dtype)
        else:
            self._swap = adapters.load(folder, self._device, self._dtype)
        self._full = source.digest
        return self._swap

    def _base(self) -> Swap:
        if self._swap is None or self._full:
            self._swap = None
            with steady((self._run.base_model, "base model")):
                self._swap = adapters.load(self._run.base_model.path, self._device, self._dtype)
            self._full = ""
        return self._swap


@contextmanager
def steady(*inputs: tuple[Source, str]) -> Iterator[None]:
    """Hashes inputs again, and makes sure that the block read what was hashed. The registry did so when they
    came in, so damage is this node's."""
    try:
        with artifact.steady(*((source.path, source.digest) for source, _ in inputs)):
            for source, name in inputs:
                _check_kind(source, name)
            yield
    except DamagedError as error:
        raise TrainerError(
            FailureClass.INFRA,
            "INPUT_DAMAGED",
            f"{' or '.join(name for _, name in inputs)} is not what its manifest says: {error}",
            "another attempt brings it to the node anew; check the node's disk",
        ) from error


def _check_kind(source: Source, name: str) -> None:
    manifest = json.loads((source.path / artifact.MANIFEST).read_bytes())
    if manifest["properties"].get("holds") == "evaluation":
        raise invalid_input(
            "TARGET_INVALID",
            f"{name} holds the answers of an evaluation, not a model",
            "name a checkpoint of a training job",
        )
