"""Run folders made as the agent makes them, trainer processes as it starts them, spools as it reads them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.spool import step_records
from tunesmith_trainer import artifact

TRAINER = Path(__file__).parents[2] / "trainer"
DEADLINE_SECONDS = 300.0

CONVERSATIONS = [
    {
        "messages": [
            {"role": "user", "content": f"how many trains go to city {index}?"},
            {"role": "assistant", "content": f"{index % 3 + 1} trains" + " every day" * (index % 4)},
        ]
    }
    for index in range(24)
]


def write_dataset(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A dataset folder with its manifest."""

    def fill(target: Path) -> None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (target / "data.jsonl").write_text("".join(lines), encoding="utf-8")

    artifact.write(folder, "dataset", {}, fill)
    return folder


def digest_of(folder: Path) -> str:
    manifest = folder / artifact.MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else ""


def spec(adapter: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    """A job specification as it comes out of proto3 JSON: 64-bit integers are strings."""
    return {
        "experiment": "job",
        "base_model": "tiny",
        "dataset": "trains",
        "method": "METHOD_SFT",
        "adapter": adapter or {"lora": {"r": 4, "alpha": 8.0, "dropout": 0.1, "target_modules": []}},
        "training": {
            "num_epochs": 1.0,
            "max_steps": "8",
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 0.01,
            "lr_scheduler": "LR_SCHEDULER_COSINE",
            "warmup_steps": "1",
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
            "seed": "7",
            "max_length": 64,
            "precision": "PRECISION_FLOAT32",
            "checkpoint_every_steps": "2",
            "keep_checkpoints": 2,
            "eval_every_steps": "0",
            "eval_fraction": 0.0,
            "log_every_steps": "1",
            "num_threads": 1,
            **training,
        },
        "sample_prompts": [],
    }


def make_run(folder: Path, base: Path, dataset: Path | None, job: dict[str, Any], **fields: Any) -> Path:
    """A run folder as the agent makes it. `fields` replace those of run.json."""
    folder.mkdir(parents=True)
    record = {
        "version": 1,
        "job": "projects/default/jobs/01k0",
        "job_id": "01k0",
        "display_name": "job-k0",
        "epoch": 1,
        "rank": 0,
        "world_size": 1,
        "spec": job,
        "spec_digest": hashlib.sha256(artifact.canonical_json(job)).hexdigest(),
        "base_model": {"path": str(base), "digest": digest_of(base)},
        "dataset": None if dataset is None else {"path": str(dataset), "digest": digest_of(dataset)},
        "checkpoint": None,
        "samples": [],
        "gpus": [],
        "traceparent": "",
        **fields,
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    set_control(folder, "run")
    return folder


def set_control(run: Path, word: str) -> None:
    hidden = run / ".control"
    hidden.write_text(word + "\n", encoding="utf-8")
    hidden.rename(run / "control")


def checkpoint_of(path: Path, step: int) -> dict[str, Any]:
    return {"path": str(path), "digest": digest_of(path), "step": step}


def wait_for(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Poll a file-based condition; the folder is all there is to watch."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.001)
    return value


class Zygote:
    """Starts trainers quickly (zygote.py)."""

    def __init__(self) -> None:
        self._process = start("tests.trainer.zygote")
        self._ready = False

    def start(self, run: Path, **options: Any) -> Trainer:
        return Trainer(self, self._ask({"run": str(run), **options}), run, int(options.get("rank", 0)))

    def wait(self, pid: int) -> int:
        return self._ask({"wait": pid})

    def close(self) -> None:
        stop(self._process)

    def _ask(self, request: dict[str, Any]) -> int:
        if not self._ready:
            assert read_line(self._process) == "ready"
            self._ready = True
        write_line(self._process, json.dumps(request))
        return int(read_line(self._process))


@dataclass(frozen=True)
class Trainer:
    """A trainer process."""

    zygote: Zygote
    pid: int
    run: Path
    rank: int = 0

    def end(self) -> int:
        """Wait for its end; gives the exit code, negative for a signal."""
        wait_for(lambda: finished_or_gone(self.run, self.pid, self.rank), "end of the trainer")
        return self.zygote.wait(self.pid)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.zygote.wait(self.pid)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)


def finished_or_gone(run: Path, pid: int, rank: int = 0) -> bool:
    path = run / (f"status-{rank}.json" if rank else "status.json")
    if path.exists() and (record := json.loads(path.read_bytes()))["pid"] == pid and record["finished"]:
        return True
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "Z"


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=TRAINER.parent,
        env={**os.environ, "PYTHONPATH": f"{TRAINER}:{TRAINER.parent}"},
    )


def write_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def stop(process: subprocess.Popen[str]) -> int:
    """End the input and wait; a process that does not end by that is killed."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        return process.wait(DEADLINE_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


def status(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text(encoding="utf-8")))


def finished(run: Path) -> dict[str, Any]:
    """The last record of an attempt, with the log if it is not there."""
    record = status(run)["finished"]
    assert record is not None, log_of(run)
    return dict(record)


def log_of(run: Path) -> str:
    path = run / "logs" / "rank-0.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def events(run: Path, kind: str = "") -> list[dict[str, Any]]:
    found = []
    for path in sorted((run / "spool").glob("events-*.jsonl")):
        found += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [event for event in found if not kind or event["type"] == kind]


def records(run: Path) -> list[tuple[int, int, dict[str, float]]]:
    """(seq, step, values) of all whole step records."""
    return [
        (seq, step, values)
        for path in sorted((run / "spool").glob("metrics-*.bin"))
        for seq, step, _, values in step_records(path.read_bytes())
    ]


def losses(run: Path) -> dict[int, float]:
    """Training loss of each step; a step that was run again replaces itself."""
    return {step: values["train/loss"] for _, step, values in records(run) if "train/loss" in values}


def metrics(run: Path) -> dict[tuple[int, str], str]:
    """Every logged value but the pace, exactly; what was logged again replaces itself."""
    return {
        (step, key): value.hex()
        for _, step, values in records(run)
        for key, value in values.items()
        if key != "train/tokens_per_second"
    }


def state_of(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / "state.json").read_bytes()))


def checkpoints(run: Path) -> list[Path]:
    return sorted(path.parent for path in (run / "checkpoints").glob("step-*/manifest.json"))


def tensors(run: Path) -> tuple[str, str]:
    """Hashes of the trained weights and the optimizer's state at the end of a run."""
    last = checkpoints(run)[-1]
    return (
        artifact.sha256_of(last / "trainable.safetensors"),
        artifact.sha256_of(last / "optimizer.safetensors"),
    )
