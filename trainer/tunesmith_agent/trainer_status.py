"""The trainer's `status.json` in the words of the contract."""

from typing import Any

from tunesmith.api.jobs.v1 import state_pb2
from tunesmith_agent.folder import RunFolder


def step_of(folder: RunFolder) -> int:
    """Returns the step the trainer has finished; 0 before the first."""
    return int((folder.status() or {}).get("step") or 0)


def progress_of(status: dict[str, Any]) -> state_pb2.Progress:
    """Returns how far training is."""
    progress = state_pb2.Progress(
        step=status.get("step") or 0,
        total_steps=status.get("total_steps") or 0,
        epoch=status.get("epoch") or 0.0,
        loss=status.get("loss") or 0.0,
        first_loss=status.get("first_loss") or 0.0,
        tokens_per_second=status.get("tokens_per_second") or 0.0,
        phase=status.get("phase") or "",
        eval_loss=status.get("eval_loss"),
        eval_scores=status.get("eval_scores") or {},
        checkpoint_seconds=status.get("checkpoint_seconds") or 0.0,
        training_seconds=status.get("training_seconds") or 0.0,
        skipped_steps=status.get("skipped_steps") or 0,
        stopped_early=bool(status.get("stopped_early")),
        checkpoint_age_seconds=status.get("checkpoint_age_seconds"),
        tflops=status.get("tflops") or 0.0,
        mfu=status.get("mfu"),
        gpu_memory_peak_bytes=status.get("gpu_memory_peak_bytes") or 0,
        gpu_memory_total_bytes=status.get("gpu_memory_total_bytes") or 0,
        resident_bytes=status.get("resident_bytes") or 0,
    )
    if status.get("eta_seconds") is not None:
        progress.eta.FromMilliseconds(int(status["eta_seconds"] * 1000))
    progress.time.FromMilliseconds(int(status.get("time", 0) * 1000))
    return progress
