"""The specs of a campaign. All jobs of a shape must end with the weights of its undisturbed run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_LORA = {"lora": {"r": 4, "dropout": 0.1}}


@dataclass(frozen=True)
class Shape:
    """One spec of which several jobs are made. `weight`: how often clients choose it."""

    name: str
    weight: float
    training: Mapping[str, Any]
    adapter: Mapping[str, Any] = field(default_factory=lambda: dict(_LORA))
    resources: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many steps it takes."""
        return int(self.training["max_steps"])

    @property
    def movable(self) -> bool:
        """Whether its jobs run on one node, and may go to another."""
        return "num_nodes" not in self.resources

    def spec(self, experiment: str) -> dict[str, Any]:
        """The job file. Retries are without end: here every failure is our own doing."""
        return self._spec(experiment, self.resources)

    def undisturbed(self) -> dict[str, Any]:
        """The run whose weights count. It has one process: the number of ranks must not show in the bits."""
        return self._spec("reference", {})

    def _spec(self, experiment: str, resources: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "experiment": experiment,
            "base_model": "tiny",
            "dataset": "sums",
            "adapter": dict(self.adapter),
            "training": {"num_threads": 1, "learning_rate": 1e-2, **self.training},
            "resources": dict(resources),
            "retry": {"max_infra_retries": 1000},
        }


def shapes(steps: int, mode: str, chosen: Sequence[str] = ()) -> list[Shape]:
    """The shapes that a form of the platform can run, all or the chosen ones.

    Dropout; accumulation, evaluation and sparse logging; full weights; two ranks; two nodes.
    """
    two = {"max_steps": max(steps // 3, 40), "seed": 11, "logical_shards": 2, "checkpoint_every_steps": 20}
    known = [
        Shape("lora", 3, {"max_steps": steps, "seed": 3, "checkpoint_every_steps": 25}),
        Shape(
            "accumulating",
            2,
            {
                "max_steps": steps // 2,
                "seed": 5,
                "gradient_accumulation_steps": 2,
                "eval_every_steps": 40,
                "eval_fraction": 0.2,
                "checkpoint_every_steps": 20,
            },
        ),
        Shape("full", 2, {"max_steps": steps, "seed": 7, "checkpoint_every_steps": 40}, {"full": {}}),
        Shape("ranks", 2, two, resources={"processes_per_node": 2}),
    ]
    if mode == "distributed":
        known.append(Shape("gang", 1, two, resources={"num_nodes": 2}))
    return [shape for shape in known if not chosen or shape.name in chosen]
