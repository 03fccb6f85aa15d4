"""`make screenshots`: every view as pictures in build/screenshots, light and dark, wide and narrow.

One platform of its own, filled as a team's would be: real dialogues, jobs that trained, failed, wait and run,
models that were judged and promoted, a rule that fires.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from examples import dialogues
from tests.support.jobs import wait_state, wait_step
from tests.support.platform import Platform, embedded, tiny_model
from tunesmith import Client

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "screenshots"
_README = (
    "home-light-1280",
    "job-running-dark-1280",
    "compare-light-1280",
    "new-job-dark-1280",
    "evaluation-light-1280",
)
_TALLEST, _COLOURS = 1000, 256
_PAGE = Path(__file__).parent / "page"
_BASE, _DATA = "pocket-lm", "support-dialogues"
_LABELS = ("billing", "delivery", "login")
_MAILS = (
    "My invoice {} has the wrong address.",
    "Parcel {} has not arrived yet.",
    "I cannot sign in as customer {}.",
)
_RULES = """
rules:
  job-failed:
    description: A job failed.
    severity: warning
    condition:
      job_state: {states: [FAILED]}
  no-progress:
    description: A running job made no step for a quarter of an hour.
    severity: critical
    condition:
      no_progress: {duration: 15m}
  eval-loss-rising:
    description: The evaluation loss rose by 5 % over three evaluations; the model may be overfitting.
    severity: info
    condition:
      trend: {key: eval/loss, num_points: 3, trend: rising, change: 0.05}
"""
_SUMMARY = """Answers short questions of customers in plain words. Trained on **real dialogues**, with LoRA.

- questions about orders, accounts and small talk
- one or two sentences; says so when it does not know
"""


def main() -> int:
    """Fills a platform and takes the pictures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the pictures")
    parser.add_argument("--only", default="", help="views by id, separated by commas; empty: all")
    parser.add_argument("--steps", type=int, default=300, help="steps of each job that ends")
    parser.add_argument("--readme", action="store_true", help="write those of the README anew, too")
    given = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium here: apt-get install chromium")
    given.out.mkdir(parents=True, exist_ok=True)
    env = {"TUNESMITH_AGENT_NODE": "workbench-1", "TUNESMITH_AGENT_SLOTS": "2"}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        embedded(Path(folder), env) as platform,
    ):
        names = json.dumps(Workshop(platform, given.steps).names)
        command = ["node", "shots.mjs", platform.http, platform.token, chromium, str(given.out.resolve())]
        code = subprocess.run([*command, names, given.only], cwd=_PAGE, check=False).returncode
    if given.readme:
        for name in _README:
            _reduce(given.out / f"{name}.png", ROOT / "docs" / "pictures" / f"{name}.png")
    return code


def _reduce(picture: Path, small: Path) -> None:
    """Writes a picture with so few colours, and cut to such a height, that it weighs next to nothing."""
    with Image.open(picture) as opened:
        top = opened.convert("RGB").crop((0, 0, opened.width, min(opened.height, _TALLEST)))
    small.parent.mkdir(exist_ok=True)
    top.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(small, optimize=True)


class Workshop:
    """Fills a platform. `names` has what the views are about, for the script in the browser."""

    def __init__(self, platform: Platform, steps: int) -> None:
        self._platform, self._steps = platform, steps
        self.names: dict[str, str] = {}
        with platform.client() as client:
            self._bring(client)
            self._train(client)
            self._judge(client)
            self._go_on(client)

    def _run(self, *words: str, seconds: float = 180) -> None:
        done = self._platform.run(*words, seconds=seconds)
        if done.returncode:
            raise SystemExit(f"tunesmith {' '.join(words)}: {done.stderr}")

    def _bring(self, client: Client) -> None:
        root = self._platform.root
        rules = root / "rules.yaml"
        rules.write_text(_RULES)
        self._run("alerts", "apply", str(rules))
        client.models.import_base(tiny_model(), _BASE, license="Apache-2.0")
        dialogues.write(root / "dialogues.jsonl")
        client.datasets.import_file(
            root / "dialogues.jsonl", _DATA, description="Small talk, as asked and answered"
        )
        mails = root / "mails.jsonl"
        rows = [{"text": _MAILS[at % 3].format(1000 + 7 * at), "label": _LABELS[at % 3]} for at in range(240)]
        mails.write_text("".join(json.dumps(row) + "\n" for row in rows))
        client.datasets.import_file(
            mails, "support-mails", description="Mails with the label they were given"
        )
        client.datasets.split(_DATA, {"dialogues-train": 0.9, "dialogues-held-out": 0.1}, seed=1)
        client.prompts.create(
            "triage",
            system="You sort mails of customers.",
            prompt="Label: {{ text }}",
            completion="{{ label }}",
            description="One label for a mail: billing, delivery or login",
            dataset="support-mails",
        )
        self.names |= {
            "base": _BASE,
            "dataset": _DATA,
            "prompt": "triage",
            "mails": "support-mails",
            "node": "workbench-1",
        }

    def _spec(self, experiment: str, rate: float, rank: int, steps: int, **training: Any) -> dict[str, Any]:
        """A job file; a rank of 0 trains all parameters, which teaches so small a model the most."""
        lora = {"lora": {"r": rank, "alpha": 2 * rank, "dropout": 0.05}}
        return {
            "experiment": experiment,
            "base_model": _BASE,
            "dataset": "dialogues-train",
            "adapter": lora if rank else {"full": {}},
            "training": {
                "max_steps": steps,
                "learning_rate": rate,
                "warmup_steps": 10,
                "max_length": 96,
                "num_threads": 1,
                "seed": 7,
                "checkpoint_every_steps": max(20, steps // 4),
                "eval_every_steps": max(20, steps // 8),
                "eval_fraction": 0.05,
                "keep_checkpoints": 4,
                **training,
            },
            "output": {"model": experiment},
            "labels": {"team": "support"},
        }

    def _train(self, client: Client) -> None:
        settings = [(1e-2, 16), (1e-3, 0), (3e-3, 0), (1e-2, 0), (3e-2, 0)]
        runs = [
            client.jobs.submit(
                {
                    **self._spec("support-bot", rate, rank, self._steps),
                    "labels": {"team": "support", "sweep": "support-rates"},
                    "sample_prompts": ["How are you?", "Are you a robot?"],
                }
            )
            for rate, rank in settings
        ]
        mails = self._spec("mail-triage", 1e-2, 0, self._steps // 2)
        mails |= {"dataset": "support-mails", "prompt_template": "triage"}
        runs.append(client.jobs.submit(mails))
        failed = client.jobs.submit(self._spec("support-bot", 1e-2, 8, self._steps) | {"dataset": "dialogs"})
        wait_state(client, failed.name, "FAILED")
        for job in runs:
            wait_state(client, job.name, "SUCCEEDED", seconds=900)
        self.names |= {"failed": failed.id, "ended": runs[3].id}
        self.names |= {"runs": ",".join(job.id for job in runs[:5]), "model": "support-bot"}
        self.names["sweep"] = "support-rates"

    def _judge(self, client: Client) -> None:
        client.cards.edit(
            "support-bot",
            summary=_SUMMARY,
            intended_use="Drafts that a person reads before they are sent.",
            limitations="Small, and trained on small talk: not for facts.",
            license="Apache-2.0",
            languages=["en"],
            tasks=["chat"],
            tags=["support"],
        )
        self._run(
            *("evaluate", _BASE, "support-bot@1", "support-bot@4", "-d", "dialogues-held-out"),
            *("-k", "perplexity", "-k", "rouge", "--max-rows", "12", "--max-new-tokens", "16", "--follow"),
            seconds=600,
        )
        evaluation = next(iter(client.evaluations.list()))
        self.names["evaluation"] = evaluation.name.rsplit("/", 1)[-1]
        client.models.set_stage("support-bot@1", "production", reason="the first that helps")
        client.models.set_stage("support-bot@4", "staging", reason="better on held-out dialogues")
        self._run("models", "policy", "support-bot", "--gate", "dialogues-held-out:perplexity<=450")
        client.versions.request_promotion("support-bot@4", "production", reason="lower perplexity")
        client.alerts.silence(timedelta(hours=2), rules=["no-progress"], comment="the node is being moved")

    def _go_on(self, client: Client) -> None:
        """What lives while the pictures are taken: two that run, one that waits."""
        running = client.jobs.submit(
            self._spec("long-dialogues", 2e-3, 0, 40_000, checkpoint_every_steps=400, eval_every_steps=250)
        )
        wait_step(client, running.name, 60)
        client.jobs.get(running.name).pause()
        wait_state(client, running.name, "PAUSED")
        client.jobs.get(running.name).resume()
        wait_step(client, running.name, 200, seconds=600)
        other = client.jobs.submit(self._spec("night-run", 1e-3, 0, 40_000))
        wait_step(client, other.name, 20, seconds=600)
        waiting = client.jobs.submit(self._spec("support-bot-large", 1e-2, 32, 2_000))
        self.names |= {"running": running.id, "waiting": waiting.id}


if __name__ == "__main__":
    sys.exit(main())
