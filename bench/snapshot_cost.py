"""What keeping the state costs beside the HF Trainer's save, in one run.

`python -m bench.snapshot_cost [--model FOLDER]`: without a folder, a tiny model. A snapshot and the HF
Trainer's save are of the same state; their rounds alternate and the least counts. The last line is JSON.
"""

# ruff: noqa: E402 - run from a checkout, the packages must be put on the path first

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "trainer")]

import torch
from transformers import Trainer, TrainingArguments

from tests.trainer import support
from tunesmith_trainer import run, tiny
from tunesmith_trainer.control import Control
from tunesmith_trainer.loop import Loop
from tunesmith_trainer.report import EventSpool, StatusFile
from tunesmith_trainer.session import open_session
from tunesmith_trainer.snapshot import Slots

LORA = {"lora": {"r": 8, "alpha": 16.0, "dropout": 0.0}}
FULL: dict[str, Any] = {"full": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a base model folder; default: the tiny model")
    parser.add_argument("--steps", type=int, default=3, help="steps whose least time counts")
    parser.add_argument("--rounds", type=int, default=5, help="saves of each kind")
    parser.add_argument("--batch", type=int, default=8, help="examples a step")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="where the slots lie")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=options.memory) as memory:
        base = options.model or Path(folder) / "tiny"
        if options.model is None:
            tiny.make(base)
        for name, adapter in (("lora", LORA), ("full", FULL)):
            times = measure(options, Path(folder) / name, Path(memory) / name, base, adapter)
            found |= {f"{name}_{key}_ms": round(value * 1e3, 3) for key, value in times.items()}
            found[f"{name}_snapshot_of_step"] = round(times["snapshot"] / times["step"], 5)
            found[f"{name}_hf_save_of_snapshot"] = round(times["hf_save"] / times["snapshot"], 2)
    sys.stdout.write(json.dumps(found) + "\n")


def measure(
    options: argparse.Namespace, folder: Path, memory: Path, base: Path, adapter: dict[str, Any]
) -> dict[str, float]:
    """Least seconds of a step, of a snapshot, and of the HF Trainer's save of the same state."""
    memory.mkdir()
    dataset = support.write_dataset(folder / "dataset", support.CONVERSATIONS * 8)
    job = support.spec(
        adapter,
        max_steps="1000000",
        micro_batch_size=options.batch,
        gradient_accumulation_steps=1,
        learning_rate=1e-5,
        checkpoint_every_steps="1000000",
        num_threads=options.threads,
    )
    path = support.make_run(folder / "run", base, dataset, job)
    session = open_session(run.load(path), EventSpool(path / "spool"))
    loop = Loop(session, Control(path), StatusFile(path))
    loop.resume()
    steps = [clocked(loop.train_step) for _ in range(options.steps + 1)]
    slots = Slots(memory / "1.slots")
    state = session.state.tensors()

    def snapshot() -> None:
        record = {"progress": loop.progress.to_json(), **session.identity.record}
        slots.write(record, state, len(state), loop.progress.position)

    hugging_face = saver(session.model.module, session.optimizer, folder / "hf")
    found: dict[str, list[float]] = {"snapshot": [], "hf_save": []}
    for _ in range(options.rounds + 2):
        found["snapshot"].append(clocked(snapshot))
        found["hf_save"].append(clocked(hugging_face))
    # The first rounds make the files and warm up.
    return {"step": min(steps[1:]), **{name: min(times[2:]) for name, times in found.items()}}


def clocked(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def saver(module: Any, optimizer: torch.optim.Optimizer, folder: Path) -> Callable[[], None]:
    """The HF Trainer's own checkpoint of this model and optimizer, as `save_steps` makes it."""
    arguments = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True, save_total_limit=1)
    trainer = Trainer(
        model=module,
        args=arguments,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
    )

    def save() -> None:
        trainer._save_checkpoint(module, trial=None)

    return save


if __name__ == "__main__":
    main()
