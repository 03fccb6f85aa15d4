"""`make walkthrough`: a user's day on real data and a real small model, each step checked.

Import, inspect, train, evaluate, a gate that fails and then passes, promote, chat, export, the export in
plain transformers and peft, verify, a flipped byte, verify again. With the client, or with `--rest` by HTTP
alone. Ends with exit code 1 at the first step that is not as said.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from examples import demo, dialogues
from examples.ways import PARENT, Facts, Refused, Rest, Sdk, Way
from tunesmith import Client

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".demo" / "walkthrough"
BIN = Path(sys.executable).parent
BASE, DATA, MODEL = "smollm2-135m-instruct", "dialogues", "walk"
QUESTION = "Are you a robot?"
SPEC = {
    "experiment": MODEL,
    "base_model": BASE,
    "dataset": DATA,
    "adapter": {"lora": {"r": 8, "alpha": 16}},
    "training": {
        "max_steps": 12,
        "micro_batch_size": 4,
        "learning_rate": 2e-3,
        "max_length": 64,
        "seed": 7,
    },
    "output": {"model": MODEL},
}
# What a user does with an exported adapter: no code of ours, the base model's folder and the adapter's.
PLAIN = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, question = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = PeftModel.from_pretrained(model, adapter)
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True), end="")
"""


def step(text: str) -> None:
    """Tells which step begins."""
    print(f"==> {text}", flush=True)  # noqa: T201


def told(text: str) -> None:
    """Tells what came of it."""
    print(f"    {text}", flush=True)  # noqa: T201


def must(holds: object, what: str) -> None:
    """Ends the walkthrough when something is not as said."""
    if not holds:
        raise SystemExit(f"not as said: {what}")


def main() -> int:
    """Walks through; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rest", action="store_true", help="by HTTP and JSON alone")
    options = parser.parse_args()
    began = time.monotonic()
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    folder = demo.base_model()
    with ExitStack() as stack:
        profile = start(stack)
        if options.rest:
            way: Way = Rest(profile["http"], profile["token"])
        else:
            client = stack.enter_context(Client(address=profile["address"], token=profile["token"]))
            way = Sdk(client)
        walk(way, folder)
    step(f"all as said, in {time.monotonic() - began:.0f} s")
    return 0


def start(stack: ExitStack) -> dict[str, str]:
    """Starts the platform for the time of the walkthrough; returns its addresses and token."""
    profile = HOME / "config" / "profile.json"
    env = {**os.environ, "TUNESMITH_CONFIG_DIR": str(HOME / "config"), "TUNESMITH_LOG_LEVEL": "error"}
    command = [
        str(BIN / "tunesmith"),
        "up",
        "--data-dir",
        str(HOME / "data"),
        "--port",
        "0",
        "--grpc-port",
        "0",
    ]
    log = stack.enter_context((HOME / "up.log").open("wb"))
    child = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def end() -> None:
        child.terminate()
        child.wait(30)

    stack.callback(end)
    while not profile.exists():
        must(child.poll() is None, f"the platform starts; see {HOME / 'up.log'}")
        time.sleep(0.05)
    found: dict[str, str] = json.loads(profile.read_text())
    return found


def walk(way: Way, folder: Path) -> None:
    """All steps, one after the other."""
    data = bring(way, folder)
    inspect(way, data)
    version = train(way)
    base_loss, tuned_loss = evaluate(way, version)
    gate(way, version, base_loss, tuned_loss)
    answer = chat(way, version)
    export(way, version, folder, answer)
    prove(way, version)


def bring(way: Way, folder: Path) -> str:
    """Imports base model and data; returns the data version."""
    step(f"import {BASE} and the dialogues of chatterbot-corpus")
    base = way.import_base(folder, BASE)
    told(f"{base['architecture']}, {int(base['num_parameters']) / 1e6:.0f} M parameters, {base['license']}")
    file = HOME / "dialogues.jsonl"
    written = dialogues.write(file)
    version = way.import_data(file, DATA)
    must(int(version["num_rows"]) == written, f"{written} rows are {version['num_rows']}")
    again = way.import_data(file, DATA)
    must(again["name"] == version["name"], "the same content is the same version")
    told(f"{version['name']}: {version['num_rows']} rows, digest {version['digest'][:12]}")
    return str(version["name"])


def inspect(way: Way, version: str) -> None:
    """Looks at what is in the data."""
    step("inspect: statistics and a preview of what training sees")
    found = way.statistics(version, BASE)
    tokens = found["tokens"]
    told(f"{tokens['num_tokens']} tokens, half of the rows have at most {tokens['lengths']['p50']:.0f}")
    must(int(tokens["num_trained_tokens"]) > 0, "answers have tokens to learn")
    row = way.rows(version, BASE)[0]
    learnt = "".join(part["text"] for part in row["segments"] if part["trained"])
    told(f"of the first row is learnt: {learnt!r}")
    answer = json.loads(row["json"])["messages"][1]["content"]
    must(answer in learnt, f"the answer {answer!r} is learnt")


def train(way: Way) -> str:
    """Trains a few steps; returns the version."""
    step("train 12 steps of LoRA")
    job = succeeded(way.run(SPEC))
    progress = job["progress"]
    told(f"{job['display_name']}: loss {progress['first_loss']:.2f} -> {progress['loss']:.2f}")
    must(progress["loss"] < progress["first_loss"], "the loss falls")
    told(f"registered as {job['model_version']}")
    return str(job["model_version"])


def succeeded(job: Facts) -> Facts:
    """The job itself, if it succeeded."""
    must(job["state"] == "JOB_STATE_SUCCEEDED", f"{job['display_name']} succeeds: {job.get('failure')}")
    return job


def evaluate(way: Way, version: str) -> tuple[float, float]:
    """Evaluates base and tuned model side by side; returns their perplexities."""
    step("evaluate the base model and the tuned one")
    spec = {
        "experiment": "evaluation",
        "dataset": DATA,
        "evaluation": {
            "targets": [f"{PARENT}/baseModels/{BASE}", version],
            "scorers": [{"perplexity": {}}],
            "max_rows": 48,
            "max_length": 64,
        },
    }
    job = succeeded(way.run(spec))
    scores = way.evaluation(job["evaluation"])["scores"]
    base, tuned = (_score(scores, place) for place in (0, 1))
    told(f"perplexity {base:.1f} -> {tuned:.1f}")
    must(tuned < base, "training made the data likelier")
    return base, tuned


def _score(scores: list[Facts], place: int) -> float:
    found = [s["value"] for s in scores if int(s["target_index"]) == place and s["metric"] == "perplexity"]
    must(len(found) == 1, f"target {place} has one perplexity")
    return float(found[0])


def gate(way: Way, version: str, base: float, tuned: float) -> None:
    """A gate that the version does not pass, then one it does."""
    model = f"{PARENT}/models/{MODEL}"
    step("a gate nobody passes: the promotion is refused and says why")
    way.set_gates(model, [{"dataset": DATA, "metric": "perplexity", "at_most": tuned / 2}])
    try:
        way.promote(version)
    except Refused as refused:
        told(str(refused))
        must(refused.reason == "GATE_FAILED", "the gate is what refuses")
        must("perplexity" in refused.message, "the metric is named")
    else:
        must(False, "the gate refuses")
    step("a gate that it passes: better than the base model")
    way.set_gates(model, [{"dataset": DATA, "metric": "perplexity", "at_most": (base + tuned) / 2}])
    must(way.promote(version)["stage"] == "MODEL_STAGE_PRODUCTION", "the version is in production")


def chat(way: Way, version: str) -> str:
    """Asks base model and version in production side by side; returns the latter's answer."""
    step(f"chat, side by side: {QUESTION}")
    production = f"{PARENT}/models/{MODEL}/versions/production"
    base, tuned = way.ask([f"{PARENT}/baseModels/{BASE}", production], QUESTION)
    told(f"base:  {base!r}")
    told(f"tuned: {tuned!r}")
    must(tuned.strip() and tuned != base, "the tuned model answers otherwise")
    must(way.ask([version], QUESTION) == [tuned], "the same question has the same answer")
    return tuned


def export(way: Way, version: str, folder: Path, answer: str) -> None:
    """Exports the version, and asks it with plain transformers and peft in a process of its own."""
    step("export, and ask the export with plain transformers and peft")
    archive, target = HOME / "walk.tar", HOME / "export"
    way.download(version, archive)
    with tarfile.open(archive) as packed:
        packed.extractall(target, filter="data")
    adapter = next(target.rglob("adapter_config.json")).parent
    told(
        f"{archive.stat().st_size / 1e6:.1f} MB: {', '.join(sorted(path.name for path in adapter.iterdir()))}"
    )
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, str(folder), str(adapter), QUESTION]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=HOME)
    must(done.returncode == 0, f"plain peft loads the export: {done.stderr[-500:]}")
    must(done.stdout == answer, f"plain peft answers the same, not {done.stdout!r}")
    told("the same answer, character by character")


def prove(way: Way, version: str) -> None:
    """Verifies, damages one byte behind the platform's back, and verifies again."""
    step("verify everything the version consists of and came from")
    intact, damaged = way.verify(version)
    must(intact and not damaged, f"all is as it was: {damaged}")
    step("flip one byte in the blob store, and verify again")
    weights = hashed(HOME / "export")
    blob = next(path for path in (HOME / "data" / "blobs").rglob(f"*{weights[4:]}") if path.is_file())
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    intact, damaged = way.verify(version)
    must(not intact, "the damage is noticed")
    named: list[Any] = [item["path"] for item in damaged]
    must("adapter_model.safetensors" in named, f"the file is named: {named}")
    told(f"named: {damaged[0]['resource']} {damaged[0]['path']}: {damaged[0]['message']}")


def hashed(folder: Path) -> str:
    """SHA-256 of the exported weights."""
    path = next(folder.rglob("adapter_model.safetensors"))
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
