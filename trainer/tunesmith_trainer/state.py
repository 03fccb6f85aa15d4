"""What a run is between two commits: where it stands, the trained tensors and the optimizer's state."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from tunesmith_trainer.failure import resume_mismatch

Tensors = dict[str, torch.Tensor]
TRAINABLE, OPTIMIZER, PARTIAL = "trainable", "optimizer", "partial"
WORST = sys.float_info.max  # of a metric that has no value: JSON knows no infinity


@dataclass(slots=True)
class Progress:
    """Where a run stands, and the sums it has not reported yet.

    `evaluated` and `eval_sum` are the micro-batches of an unfinished evaluation and their loss; `partial`
    says what each rank has of an unfinished step (gradient.py). `judged` is what the best checkpoint and
    early stopping go by: the loss of the newest evaluation, or a scorer's metric; smaller is better.
    `judged_by` names it, empty in states that were written before it was noted.
    """

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
    evaluated: int = 0
    eval_sum: float = 0.0
    stopping_loss: float | None = None
    num_worse: int = 0
    judged: float | None = None
    judged_by: str = ""
    eval_scores: dict[str, float] = field(default_factory=dict)
    stopped_early: bool = False
    skipped_steps: int = 0
    partial: list[dict[str, Any]] = field(default_factory=list)

    @property
    def position(self) -> tuple[int, int]:
        """Step, and how far within the step or the evaluation after it: to find the newest state.

        After a step comes its evaluation, then the next step's micro-batches.
        """
        if self.partial:
            return self.step, 2**32 + max(int(item["round"]) for item in self.partial)
        return self.step, 2**31 if self.evaluated_step == self.step else self.evaluated

    def to_json(self) -> dict[str, Any]:
        """All fields, for the state's record."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Progress:
        """The other way; fields this version does not know are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in record.items() if key in known})

    def count_evaluation(
        self, loss: float, scores: Mapping[str, float], judged: float, min_delta: float
    ) -> None:
        """Take the result of an evaluation, and whether it was better than the best so far by `min_delta`."""
        self.eval_loss, self.eval_scores, self.judged = loss, dict(scores), judged
        self.best_eval_loss = loss if self.best_eval_loss is None else min(loss, self.best_eval_loss)
        self.evaluated_step = self.step
        self.evaluated, self.eval_sum = 0, 0.0
        if self.stopping_loss is None or judged < self.stopping_loss - min_delta:
            self.stopping_loss, self.num_worse = judged, 0
        else:
            self.num_worse += 1

    def go_by(self, metric: str, *, is_loss: bool) -> None:
        """Let `metric` decide from here on. A fork may have chosen another than its parent: figures of
        different metrics are not compared, so its best and its patience begin anew."""
        if self.judged_by not in ("", metric):
            self.stopping_loss, self.num_worse = None, 0
            # What is saved before the first evaluation by the new metric must not be the best by it.
            self.judged = None if is_loss else WORST
        self.judged_by = metric

    def drop_partial(self) -> None:
        """Forget what is unfinished; it is computed anew to the same bits."""
        self.partial, self.evaluated, self.eval_sum = [], 0, 0.0


class TrainedState:
    """The trained tensors and AdamW's moments, read and written by name."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.parameters = parameters
        self._optimizer = optimizer

    def tensors(self) -> Tensors:
        """The live tensors by `group/name`, not copies."""
        found = {f"{TRAINABLE}/{name}": item.detach() for name, item in self.parameters.items()}
        for name, parameter in self.parameters.items():
            # A parameter that never got a gradient (an expert never chosen) has no state.
            for key, value in self._optimizer.state.get(parameter, {}).items():
                found[f"{OPTIMIZER}/{key}.{name}"] = value
        return found

    def restore(self, tensors: Tensors) -> None:
        """Set what `tensors` gave, in freshly allocated memory: kernels may round by alignment."""
        weights, moments = group(tensors, TRAINABLE), group(tensors, OPTIMIZER)
        shapes = {name: tuple(item.shape) for name, item in self.parameters.items()}
        saved = {name: tuple(item.shape) for name, item in weights.items()}
        for name in sorted({*shapes, *saved}):
            if shapes.get(name) != saved.get(name):
                raise resume_mismatch(f"tensor.{name}", saved.get(name), shapes.get(name))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        self._optimizer.state.clear()
        for full, value in moments.items():
            key, _, name = full.partition(".")
            parameter = self.parameters[name]
            self._optimizer.state[parameter][key] = torch.empty_like(value, device=parameter.device).copy_(
                value
            )


def group(tensors: Tensors, name: str) -> Tensors:
    """The tensors of one group, by their own names."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): item for key, item in tensors.items() if key.startswith(prefix)}
