"""What our loop costs beside a bare PyTorch + PEFT loop and the HF Trainer, on the same batches in one run.

`python bench/step_overhead.py [--model FOLDER] [--steps N] [--rounds N]`; without a folder, a tiny model.
Rounds of the rivals alternate and the least time a step counts, for the machine may be busy. The last line
is JSON.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "trainer")]

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from tests.trainer import support
from tunesmith_trainer import run, tiny
from tunesmith_trainer.control import Control
from tunesmith_trainer.data import Example
from tunesmith_trainer.loop import Loop
from tunesmith_trainer.report import EventSpool, StatusFile
from tunesmith_trainer.session import open_session

LEARNING_RATE = 1e-3
Batch = dict[str, torch.Tensor]
Round = Callable[[], tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a base model folder; default: the tiny model")
    parser.add_argument("--steps", type=int, default=50, help="steps a round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each rival")
    parser.add_argument("--batch", type=int, default=4, help="examples a step")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--all-tokens", action="store_true", help="train on all tokens, not the assistant's")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        report(options, compare(options, Path(folder)))


def compare(options: argparse.Namespace, folder: Path) -> dict[str, tuple[float, float]]:
    """Least CPU and least wall seconds a step of each rival, and of ours with its rival's own kernels."""
    base = options.model or folder / "tiny"
    if options.model is None:
        tiny.make(base)
    loop = our_loop(options, folder, base)
    batches = [padded(loop, step) for step in range(options.steps)]
    rivals: dict[str, Round] = {
        "bare": bare(base, batches),
        "tunesmith": ours(loop, options.steps),
        "hf": hugging_face(base, batches, folder),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for _ in range(options.rounds + 1):
        for name, rival in rivals.items():
            times[name].append(rival())
    # The first round warms up. CPU and wall each have their own least, for noise strikes them apart.
    return {
        name: (
            min(cpu for cpu, _ in found[1:]) / options.steps,
            min(wall for _, wall in found[1:]) / options.steps,
        )
        for name, found in times.items()
    }


def our_loop(options: argparse.Namespace, folder: Path, base: Path) -> Loop:
    """The real loop on a real run folder, with its spool, status and control file."""
    rows: list[dict[str, Any]] = support.CONVERSATIONS * 8
    if options.all_tokens:
        rows = [{"text": " ".join(message["content"] for message in row["messages"])} for row in rows]
    dataset = support.write_dataset(folder / "dataset", rows)
    adapter = {"lora": {"r": 8, "alpha": 16.0, "dropout": 0.0}}
    job = support.spec(
        adapter,
        max_steps=str(10**6),
        micro_batch_size=options.batch,
        gradient_accumulation_steps=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler="LR_SCHEDULER_CONSTANT",
        weight_decay=0.0,
        warmup_steps="0",
        checkpoint_every_steps="0",
        num_threads=options.threads,
    )
    path = support.make_run(folder / "run", base, dataset, job)
    session = open_session(run.load(path), EventSpool(path / "spool"))
    loop = Loop(session, Control(path), StatusFile(path))
    loop.resume()
    return loop


def padded(loop: Loop, step: int, rank: int = 0) -> Batch:
    """The same examples as our step's, as every other trainer takes them: ids, mask and labels."""
    session = loop.session
    micro = session.course.micro_batches(step)[rank]
    examples: Sequence[Example] = [session.feed.example(index) for index in micro.items]
    width = max(len(example.tokens) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        tokens = torch.from_numpy(example.tokens)
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, example.positions + 1] = tokens[example.positions + 1]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def adapted(base: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.config.use_cache = False
    return get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    ).train()


def timed(work: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def bare(base: Path, batches: list[Batch]) -> Round:
    model = adapted(base)
    parameters = [item for item in model.parameters() if item.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def work() -> None:
        for batch in batches:
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            float(loss.detach())

    return lambda: timed(work)


def ours(loop: Loop, steps: int) -> Round:
    def work() -> None:
        # The same steps each round, as the rivals take the same batches; the weights go on changing in all.
        loop.progress.step = 0
        for _ in range(steps):
            loop.train_step()

    return lambda: timed(work)


def hugging_face(base: Path, batches: list[Batch], folder: Path) -> Round:
    model = adapted(base)

    class Given(torch.utils.data.Dataset[Batch]):
        def __len__(self) -> int:
            return len(batches)

        def __getitem__(self, index: int) -> Batch:
            return batches[index]

    arguments = TrainingArguments(
        output_dir=str(folder / "hf"),
        per_device_train_batch_size=1,
        max_steps=len(batches),
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )

    class Clock(TrainerCallback):
        """Only whole steps count, not what `train` does before the first and after the last."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                self.wall, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.spent = (time.process_time() - self.cpu, time.perf_counter() - self.wall)

    class Quiet(Trainer):
        def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
            self.state.log_history.append(dict(logs))

        def _get_train_sampler(self, *arguments: Any) -> Any:
            return torch.utils.data.SequentialSampler(Given())

    def round_() -> tuple[float, float]:
        clock = Clock()
        Quiet(
            model=model,
            args=arguments,
            train_dataset=Given(),
            data_collator=lambda items: dict(items[0]),
            callbacks=[clock],
        ).train()
        return clock.spent

    return round_


def report(options: argparse.Namespace, times: dict[str, tuple[float, float]]) -> None:
    write = sys.stdout.write
    bare_cpu, bare_wall = times["bare"]
    write(f"{'loop':<12}{'CPU ms/step':>14}{'wall ms/step':>14}{'CPU - bare':>12}{'CPU / bare':>12}\n")
    for name, (cpu, wall) in times.items():
        more, ratio = (cpu - bare_cpu) * 1e3, cpu / bare_cpu
        write(f"{name:<12}{cpu * 1e3:>14.3f}{wall * 1e3:>14.3f}{more:>12.3f}{ratio:>12.4f}\n")
    answer = {
        "model": str(options.model or "tiny"),
        "step_overhead_ms": round((times["tunesmith"][0] - bare_cpu) * 1e3, 4),
        "step_overhead_ratio": round(times["tunesmith"][0] / bare_cpu, 4),
        "step_overhead_wall_ms": round((times["tunesmith"][1] - bare_wall) * 1e3, 4),
        "hf_step_overhead_ms": round((times["hf"][0] - bare_cpu) * 1e3, 4),
        "hf_step_overhead_ratio": round(times["hf"][0] / bare_cpu, 4),
    }
    write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
