"""What exact sums over two ranks cost beside plain DDP, on the same batches in one run.

`python -m bench.rank_overhead [--model FOLDER]`: two processes of gloo; rounds of ours and of DDP alternate
and the least wall time a step counts. The last line is JSON.
"""

# ruff: noqa: E402 - run from a checkout, the packages must be put on the path first

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

_ROOT = Path(__file__).parents[1]
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:0] = [str(_ROOT), str(_ROOT / "trainer")]

import torch
from torch.nn.parallel import DistributedDataParallel

from bench.step_overhead import LEARNING_RATE, adapted, padded
from tests.trainer import support
from tunesmith_trainer import run, tiny
from tunesmith_trainer.control import Control
from tunesmith_trainer.loop import Loop
from tunesmith_trainer.report import EventSpool, Silent, StatusFile
from tunesmith_trainer.session import open_session

RANKS = 2
ADAPTER = {"lora": {"r": 8, "alpha": 16.0, "dropout": 0.0}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a base model folder; default: the tiny model")
    parser.add_argument("--steps", type=int, default=20, help="steps a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each")
    parser.add_argument("--batch", type=int, default=4, help="examples a step and rank")
    parser.add_argument("--run", type=Path, help="internal: the run folder")
    parser.add_argument("--rank", type=int, default=0, help="internal: the rank in it")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.run is not None:
        work(options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = options.model or folder / "tiny"
        if options.model is None:
            tiny.make(base)
        path = prepare(folder, base, options.batch)
        command = [sys.executable, "-m", "bench.rank_overhead", *sys.argv[1:], "--run", str(path)]
        children = [subprocess.Popen([*command, "--rank", str(rank)], cwd=_ROOT) for rank in range(RANKS)]
        if any([child.wait() for child in children]):
            raise SystemExit("a rank failed")


def prepare(folder: Path, base: Path, batch: int) -> Path:
    dataset = support.write_dataset(folder / "dataset", support.CONVERSATIONS * 16)
    job = support.spec(
        ADAPTER,
        max_steps="1000000",
        micro_batch_size=batch,
        gradient_accumulation_steps=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler="LR_SCHEDULER_CONSTANT",
        weight_decay=0.0,
        warmup_steps="0",
        checkpoint_every_steps="1000000",
        logical_shards=RANKS,
    )
    return support.make_run(folder / "run", base, dataset, job, world_size=RANKS)


def work(options: argparse.Namespace) -> None:
    """One rank: our loop and DDP, in the same group, on the same examples."""
    path, rank = options.run, options.rank
    wanted = run.load(path, rank)
    session = open_session(wanted, EventSpool(path / "spool") if rank == 0 else Silent())
    loop = Loop(session, Control(path), StatusFile(path, rank))
    loop.resume()
    model = DistributedDataParallel(adapted(wanted.base_model.path))
    parameters = [item for item in model.parameters() if item.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    batches = [padded(loop, step, rank) for step in range(options.steps)]

    def exact() -> None:
        loop.progress.step = 0
        for _ in range(options.steps):
            loop.train_step()

    def ddp() -> None:
        for batch in batches:
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            float(loss.detach())

    times: dict[str, list[float]] = {"exact": [], "ddp": []}
    for _ in range(options.rounds + 1):
        for name, rival in (("exact", exact), ("ddp", ddp)):
            start = time.perf_counter()
            rival()
            times[name].append((time.perf_counter() - start) / options.steps)
    least = {name: min(found[1:]) for name, found in times.items()}  # the first round warms up
    if rank == 0:
        answer = {f"{name}_ms": round(value * 1e3, 3) for name, value in least.items()}
        answer["exact_of_ddp"] = round(least["exact"] / least["ddp"], 4)
        sys.stdout.write(json.dumps(answer) + "\n")
    session.group.close()


if __name__ == "__main__":
    main()
