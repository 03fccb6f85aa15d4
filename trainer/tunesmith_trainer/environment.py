"""What besides the job decides the bits: threads, device, kernels and versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy
import peft
import tokenizers
import torch
import transformers
from torch.utils import deterministic

from tunesmith_trainer.failure import FailureClass, TrainerError

# Raised whenever a change of the trainer can change the numbers of a run, so that no resume mixes the two.
NUMERICS = "1"


def pin(num_threads: int) -> int:
    """Make torch deterministic and fix its threads (0: all that this process may use); gives their number."""
    threads = num_threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode also fills every new tensor with NaN, which only hides errors and costs a pass.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    return threads


def choose_device(gpus: tuple[str, ...]) -> torch.device:
    """The GPU the agent reserved, else the CPU. A missing GPU is a fault of the node, not of the job."""
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise TrainerError(
            FailureClass.INFRA,
            "GPU_MISSING",
            f"GPUs {', '.join(gpus)} are reserved, but torch {torch.__version__} sees none",
            "check the driver, and that a torch with CUDA is installed on the node",
        )
    return torch.device("cuda", 0)


def fingerprint(device: torch.device, threads: int) -> dict[str, str]:
    """All that must be equal for a resumed run to give the same bits."""
    cuda = device.type == "cuda"
    return {
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


def _cpu_vendor() -> str:
    # MKL picks its kernels by vendor as well as by instruction set.
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    for line in info.read_text(errors="replace").splitlines():
        if line.startswith("vendor_id"):
            return line.partition(":")[2].strip()
    return ""
