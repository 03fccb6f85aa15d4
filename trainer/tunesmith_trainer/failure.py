"""Failures of an attempt, with the class that decides whether it is tried again."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path


class FailureClass(StrEnum):
    """The classes of `FailureClass` in state.proto that a trainer can tell."""

    INFRA = "INFRA"
    USER_ERROR = "USER_ERROR"
    OOM = "OOM"
    NAN_LOSS = "NAN_LOSS"
    INVALID_INPUT = "INVALID_INPUT"
    RESUME_MISMATCH = "RESUME_MISMATCH"


@dataclass(frozen=True, slots=True)
class Failure:
    """What status.json says of a failed attempt."""

    failure_class: FailureClass
    reason: str
    message: str
    remedy: str = ""


class TrainerError(Exception):
    """A failure whose class, reason and remedy are known where it is raised."""

    def __init__(self, failure_class: FailureClass, reason: str, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.failure = Failure(failure_class, reason, message, remedy)


def invalid_input(reason: str, message: str, remedy: str) -> TrainerError:
    """An error in what the user gave: the job specification, the base model or the data."""
    return TrainerError(FailureClass.INVALID_INPUT, reason, message, remedy)


def resume_mismatch(item: str, saved: object, now: object, detail: str = "") -> TrainerError:
    """The checkpoint was made under another `item`, so going on from it would not give the same bits."""
    more = f" ({detail})" if detail else ""
    return TrainerError(
        FailureClass.RESUME_MISMATCH,
        f"{item.upper().replace('.', '_')}_DIFFERS",
        f"the checkpoint was made with {item} {saved!s}, but this attempt has {now!s}{more}"[:2000],
        f"run the attempt where {item} is the same, or start the job anew without the checkpoint",
    )


# RLIMIT_FSIZE and quotas end a write for the same reason as a full disk does.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OOM_REMEDY = (
    "lower training.micro_batch_size (and raise gradient_accumulation_steps by the same factor) "
    "or training.max_length, or use LoRA and PRECISION_BFLOAT16"
)


def memory_advice(micro_batch_size: int, accumulation: int, max_length: int, *, lora: bool) -> str:
    """Which setting to change when memory ran out, and to what."""
    if micro_batch_size > 1:
        # The largest part that divides it, so that the global batch stays what it was.
        part = next(size for size in range(micro_batch_size // 2, 0, -1) if micro_batch_size % size == 0)
        halves = part * 2 == micro_batch_size
        return (
            f"set training.micro_batch_size to {part} (it is {micro_batch_size}) and "
            f"training.gradient_accumulation_steps to {micro_batch_size * accumulation // part} "
            f"(it is {accumulation})"
            + ("; retry.oom_policy OOM_POLICY_HALVE_MICRO_BATCH does it by itself" if halves else "")
        )
    other = "use adapter.lora" if not lora else "set training.precision to PRECISION_BFLOAT16"
    return f"set training.max_length to {max(2, max_length // 2)} (it is {max_length}), or {other}"


def of_peers(folder: Path) -> Failure | None:
    """The failure another rank told of, which is why it left; None when it left without a word."""
    for path in sorted(folder.glob("status-*.json")):
        try:
            told = json.loads(path.read_bytes())["finished"]
            failure = Failure(
                FailureClass(told["failure_class"]), told["reason"], told["message"], told["remedy"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if failure.reason != "PEER_LOST":
            rank = path.stem.removeprefix("status-")
            return replace(failure, message=f"rank {rank}: {failure.message}")
    return None


def classify(error: BaseException) -> Failure:
    """Map any exception to the failure that status.json reports."""
    if isinstance(error, TrainerError):
        return error.failure
    message = f"{type(error).__name__}: {error}".strip()[:2000]
    # On the CPU torch has no type of its own for a refused allocation: RuntimeError, "can't allocate memory".
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in message
    ):
        return Failure(FailureClass.OOM, "OUT_OF_MEMORY", message, _OOM_REMEDY)
    code = _error_number(error)
    if code in _FULL:
        return Failure(
            FailureClass.INFRA,
            "DISK_FULL",
            message,
            "free space on the node's disk, then submit the job again",
        )
    if code == errno.EIO:
        return Failure(FailureClass.INFRA, "DISK_ERROR", message, "check the node's disk")
    return Failure(FailureClass.USER_ERROR, "EXCEPTION", message, "see the attempt's log for the traceback")


def _error_number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors reports a failed write as its own type, with the number in the text only.
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"os error (\d+)", str(error))):
        return int(found[1])
    return None
