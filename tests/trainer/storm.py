"""The bit-identity matrix: features x where the process is killed x ranks, against the undisturbed run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.trainer import support
from tests.trainer.support import Trainer

Start = Callable[..., Trainer]
Spec = dict[str, Any]

# Where a process is killed, in an order in which a run comes by them, and at which visit: the phases, a
# half-written snapshot, a checkpoint that is on the disk but not told of.
PLACES = (
    ("INIT", 1),
    ("TRAIN_START_EPOCH", 1),
    ("TRAIN_BATCH_LOAD", 2),
    ("SNAPSHOT", 2),
    ("TRAIN_BATCH_FORWARD", 2),
    ("TRAIN_BATCH_BACKWARD", 3),
    ("TRAIN_BATCH_OPTIM_STEP", 2),
    ("SCHEDULER_BATCH_STEP", 1),
    ("TRAIN_BATCH_END", 2),
    ("CHECKPOINT", 1),
    ("VAL_START_EPOCH", 1),
    ("VAL_BATCH_LOAD", 2),
    ("VAL_BATCH_FORWARD", 1),
    ("VAL_BATCH_END", 1),
    ("SCHEDULER_EPOCH_STEP", 1),
    ("EPOCH_END", 1),
    ("TRAINING_COMPLETE", 1),
)
LORA = {"lora": {"r": 4, "alpha": 8.0, "dropout": 0.1, "target_modules": []}}
_COMMON = {
    "max_steps": "0",
    "num_epochs": 4.0,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "eval_every_steps": "3",
    "eval_fraction": 0.2,
    "checkpoint_every_steps": "4",
    "log_every_steps": "2",
    "max_checkpoint_overhead": 1.0,
}
ALL = {
    "packing": True,
    "neftune_noise_alpha": 5.0,
    "word_dropout": 0.1,
    "precision": "PRECISION_BFLOAT16",
    "lr_scheduler": "LR_SCHEDULER_LINEAR",
    "early_stopping_patience": 2,
    "early_stopping_min_delta": 10.0,
    "eval_every_steps": "4",
    "keep_best_checkpoints": 1,
    "micro_batch_size": 1,
    "num_epochs": 8.0,
}
FEATURES: dict[str, dict[str, Any]] = {
    "dropout": {},
    "full": {"adapter": {"full": {}}, "learning_rate": 0.001},
    "bfloat16": {"precision": "PRECISION_BFLOAT16"},
    "packing": {"packing": True, "micro_batch_size": 1, "num_epochs": 8.0},
    "neftune": {"neftune_noise_alpha": 5.0},
    "word_dropout": {"word_dropout": 0.2},
    "linear": {"lr_scheduler": "LR_SCHEDULER_LINEAR"},
    "constant": {"lr_scheduler": "LR_SCHEDULER_CONSTANT"},
    "early_stopping": {"early_stopping_patience": 3, "early_stopping_min_delta": 10.0},
    "no_accumulation": {"gradient_accumulation_steps": 1},
    "micro_snapshots": {"snapshots": "SNAPSHOT_MODE_MICRO_STEP", "gradient_accumulation_steps": 3},
    "nan_skip": {"nan_policy": "NAN_POLICY_SKIP"},
    "all": ALL,
}


def spec_of(feature: str, shards: int = 0) -> Spec:
    fields = {**_COMMON, "logical_shards": shards, **FEATURES[feature]}
    adapter = fields.pop("adapter", LORA)
    return support.spec(adapter, **fields)


class Crew:
    """All ranks of an attempt in one run folder; the `options` are those of the `victim`."""

    def __init__(self, start: Start, run: Path, ranks: int, *, victim: int = 0, **options: Any) -> None:
        set_field(run, world_size=ranks)
        for path in run.glob("status*.json"):
            path.unlink()
        self.run = run
        self.trainers = [
            start(run, rank=rank, **(options if rank == victim else {})) for rank in range(ranks)
        ]

    def end(self) -> list[int]:
        """Exit codes by rank."""
        return [trainer.end() for trainer in self.trainers]

    def bury(self) -> bool:
        """Wait until one rank dies, then kill the others as the agent does; gives whether it was killed."""
        gone = support.wait_for(self._gone, "death of a rank")
        for trainer in self.trainers:
            if trainer is not gone:
                trainer.kill()
        return bool(gone.end() == -9)

    def _gone(self) -> Trainer | None:
        """A rank that died or failed, or rank 0 when it is done: the others may be done before it."""
        for item in self.trainers:
            if support.finished_or_gone(self.run, item.pid, item.rank):
                told = self.run / (f"status-{item.rank}.json" if item.rank else "status.json")
                record = json.loads(told.read_bytes())["finished"] or {}
                if item.rank == 0 or record.get("result") != "completed":
                    return item
        return None


def set_field(run: Path, **fields: Any) -> None:
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields), encoding="utf-8")


def outcome(run: Path) -> dict[str, Any]:
    """All that must be equal: the hashes of weights, optimizer and output, every logged metric."""
    weights, optimizer = support.tensors(run)
    output = support.digest_of(run / "output")
    return {"weights": weights, "optimizer": optimizer, "output": output, "metrics": support.metrics(run)}


def weather(start: Start, run: Path, ranks: int, places: tuple[tuple[str, int], ...] = PLACES) -> int:
    """Kill the run at each place once, then let it end; gives how many kills struck."""
    kills = 0
    for number, (place, visit) in enumerate(places):
        # Rank 0 alone writes snapshots and checkpoints; any rank may die anywhere else.
        victim = 0 if place in ("SNAPSHOT", "CHECKPOINT") else number % ranks
        crew = Crew(start, run, ranks, victim=victim, die_at=place, visit=visit)
        if crew.bury():
            kills += 1
        elif support.finished(run)["result"] == "completed":
            return kills
    assert set(Crew(start, run, ranks).end()) == {0}, support.log_of(run)
    return kills
