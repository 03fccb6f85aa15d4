"""What besides the job decides the bits: threads, device, kernels and versions."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
from pathlib import Path

import numpy
import peft
import safetensors
import tokenizers
import torch
import transformers
from torch.utils import deterministic

from tunesmith_trainer.failure import FailureClass, TrainerError
from tunesmith_trainer.run import GradientSync, Run

# Raised whenever a change of the trainer can change the numbers of a run, so that no resume mixes the two.
NUMERICS = "1"
_FILE = "environment.json"


def pin(threads: int) -> None:
    """Make torch deterministic and fix its threads."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode also fills every new tensor with NaN, which only hides errors and costs a pass.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def choose_device(gpus: tuple[str, ...], rank: int = 0) -> torch.device:
    """The GPU reserved for this rank, else the CPU. A missing GPU is a fault of the node, not of the job."""
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise TrainerError(
            FailureClass.INFRA,
            "GPU_MISSING",
            f"GPUs {', '.join(gpus)} are reserved, but torch {torch.__version__} sees none",
            "check the driver, and that a torch with CUDA is installed on the node",
        )
    return torch.device("cuda", rank % torch.cuda.device_count())


def threads_of(num_threads: int, local_world_size: int) -> int:
    """Threads of each rank: as given, or the processors of this process divided among the node's ranks."""
    return num_threads or max(1, len(os.sched_getaffinity(0)) // local_world_size)


def fingerprint(device: torch.device, threads: int, run: Run) -> dict[str, str]:
    """All that must be equal for a resumed run to give the same bits."""
    cuda = device.type == "cuda"
    training = run.spec.training
    more = {}
    if training.logical_shards > 1:
        more["logical_shards"] = str(training.logical_shards)
    if training.gradient_sync is GradientSync.FAST and run.world_size > 1:
        more["world_size"] = str(run.world_size)
    if run.micro_batch_divisor > 1:
        more["micro_batch_divisor"] = str(run.micro_batch_divisor)
    return more | {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "isa": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {_cpu_vendor()}",
        "numerics": NUMERICS,
        "numpy": numpy.__version__,
        "peft": peft.__version__,
        "threads": str(threads),
        "tokenizers": tokenizers.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def tell(run: Run, device: torch.device, threads: int) -> None:
    """Write environment.json: the fingerprint, and what else a person asks when two runs differ."""
    found = fingerprint(device, threads, run) | {
        "cpus": str(len(os.sched_getaffinity(0))),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "safetensors": safetensors.__version__,
        "world_size": str(run.world_size),
    }
    if device.type == "cuda":
        found |= _of_gpus()
    hidden = run.folder / f".{_FILE}.tmp"
    hidden.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    hidden.replace(run.folder / _FILE)


def _of_gpus() -> dict[str, str]:
    found = {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    # "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul …", or "… Open Kernel Module for …".
    driver = Path("/proc/driver/nvidia/version")
    told = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", driver.read_text()) if driver.exists() else None
    return found | ({"driver": told.group(1)} if told else {})


def _cpu_vendor() -> str:
    # MKL picks its kernels by vendor as well as by instruction set.
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    for line in info.read_text(errors="replace").splitlines():
        if line.startswith("vendor_id"):
            return line.partition(":")[2].strip()
    return ""
