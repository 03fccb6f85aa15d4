"""The page in a real browser, against the real platform."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import spec, wait_state, wait_step
from tests.support.platform import Platform, dialogues

FOLDER = Path(__file__).parent / "page"
STATIC = Path(__file__).parents[2] / "gateway" / "tunesmith_gateway" / "static" / "index.html"


class Onlooker:
    """The browser's script: what it saw, by name, in order."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self._lines = process.stdout
        self.seen: dict[str, Any] = {}

    def until(self, name: str) -> dict[str, Any]:
        """Reads on until the script has seen `name`, and returns what it noted."""
        while name not in self.seen:
            line = self._lines.readline()
            assert line, f"the browser ended before it saw {name!r}; it saw {list(self.seen)}"
            fact = json.loads(line)
            assert fact["saw"] not in ("trouble", "page error"), fact
            # A refused token is an error to the browser's console as well.
            assert fact["saw"] != "console error" or "401" in fact["text"], fact
            self.seen[fact["saw"]] = fact
        found: dict[str, Any] = self.seen[name]
        return found


def browser() -> str:
    """The browser's path; skips where there is none, or no page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None or not STATIC.exists():
        pytest.skip("no Chromium here, or the page is not built (make web)")
    return chromium


@pytest.mark.browser
def test_the_page_shows_a_job_live_from_submission_to_its_end(
    npm: Callable[..., None], platform: Platform, tmp_path: Path
) -> None:
    npm(FOLDER)
    command = ["node", "page.mjs", platform.http, platform.token, browser(), str(tmp_path)]
    with (
        subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process,
        platform.client() as client,
    ):
        page = Onlooker(process)
        assert page.until("refused")["text"] == "the token is not known"
        page.until("empty list")
        client.jobs.submit({**spec(900), "experiment": "page", "sample_prompts": ["what is 2 plus 2?"]})
        assert page.until("loss moves")["inked"] > 1000
        done = page.until("succeeded")
        assert "/jobs/" in done["url"]
        assert "what is 2 plus 2?" in done["answers"]
        assert page.until("second chart")["url"].endswith("?metrics=loss%2Clearning_rate")
        assert page.until("reloaded")["charts"] == 2
        assert page.until("dark")["theme"] == "dark"
        client.jobs.submit({**spec(1_000_000), "experiment": "endless"})
        assert "unpin" in page.until("resumed")["checkpoint"]
        assert "every fitting node is busy" in page.until("forked")["waits"].lower()
        assert page.until("cancelled")["buttons"] == 0
        phone = page.until("telephone")
        assert "token" not in phone["url"]
        assert phone["wide"] <= 0, "the page is wider than the telephone"
        page.until("done")
        assert process.wait(30) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "running.png",
        "paused.png",
        "waiting.png",
        "dark.png",
        "telephone.png",
    }


@pytest.fixture(scope="module")
def furnished(platform: Platform) -> Platform:
    """A model `walked` that was evaluated beside its base, a gate, a rule, a template, many datasets."""
    with platform.client() as client:
        job = client.jobs.submit({**spec(20), "experiment": "walked", "labels": {"sweep": "walks"}})
        wait_state(client, job.name, "SUCCEEDED")
        client.prompts.create("plain", prompt="{{ prompt }}", completion="{{ completion }}")
        client.datasets.import_file(dialogues(platform.root / "many.jsonl", 400), "many")
        for seed in range(4):
            client.datasets.split("many", {f"part-{seed}-{part:02}": 1.0 for part in range(16)}, seed=seed)
    rules = platform.root / "rules.yaml"
    rules.write_text("rules:\n  any-failure:\n    condition:\n      job_state: {states: [FAILED]}\n")
    for words in (
        ("evaluate", "tiny", "walked@1", "-d", "sums", "-k", "perplexity", "--max-rows", "8", "--follow"),
        ("models", "policy", "walked", "--gate", "sums:exact_match>=0.9"),
        ("alerts", "apply", str(rules)),
    ):
        done = platform.run(*words)
        assert done.returncode == 0, done.stderr
    return platform


@pytest.mark.browser
def test_the_page_leads_through_data_models_chat_and_fleet(
    npm: Callable[..., None], furnished: Platform, tmp_path: Path
) -> None:
    npm(FOLDER)
    command = ["node", "views.mjs", furnished.http, furnished.token, browser(), str(tmp_path), "walked"]
    with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process:
        page = Onlooker(process)
        keys = page.until("keys")
        assert keys["title"] == "Datasets · Tunesmith"
        assert keys["focused"].startswith("part-0-0")
        assert keys["all"] == 66
        assert keys["drawn"] < 60, "only what is in sight is in the document"
        data = page.until("data")
        assert data["learnt"].startswith("4")
        assert data["wide"] <= 0
        assert data["scripts"] == 0
        assert "tab=statistics" in data["url"]
        assert "base=tiny" in data["url"]
        card = page.until("card")
        assert card["text"], "HTML in a card stays text"
        assert card["images"] == 0
        assert card["links"] == ["https://example.org/a"]
        assert page.until("lineage")["kinds"] == ["base_model", "dataset", "evaluation", "job", "model"]
        proved = page.until("proved")
        assert proved["verdict"] == "intact"
        assert "walked" in proved["file"]
        evaluation = page.until("evaluation")
        assert "walked@1\tperplexity" in evaluation["better"]
        assert evaluation["answers"] == 2
        assert "order=DIFFERENCE" in evaluation["url"]
        notes = page.until("chat")["notes"]
        assert any("12 tokens" in note for note in notes)
        assert notes[-1] == "stopped"
        assert "Nobody was told" in page.until("fleet")["tested"]
        assert page.until("telephone")["wide"] == []
        page.until("done")
        assert process.wait(30) == 0
    with furnished.client() as client:
        assert client.datasets.get("kept").latest.num_rows == 1


@pytest.mark.browser
def test_two_tabs_that_edit_the_same_hear_of_each_other(
    npm: Callable[..., None], furnished: Platform, tmp_path: Path
) -> None:
    npm(FOLDER)
    rules = furnished.root / "own-rule.yaml"
    rules.write_text("rules:\n  two-tabs:\n    condition:\n      job_state: {states: [PAUSED]}\n")
    assert furnished.run("alerts", "apply", str(rules)).returncode == 0
    with furnished.client() as client:
        for rate in (1e-3, 2e-3):
            job = client.jobs.submit({**spec(4, learning_rate=rate), "experiment": "edited"})
            wait_state(client, job.name, "SUCCEEDED")
    words = ("edited", "two-tabs")
    command = ["node", "tabs.mjs", furnished.http, furnished.token, browser(), str(tmp_path), *words]
    with (
        subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process,
        furnished.client() as client,
    ):
        page = Onlooker(process)
        card = page.until("card")
        assert "changed this card meanwhile" in card["told"]
        assert card["fields"] == 1, "only what both have changed is in dispute"
        assert "theirs: the summary" in card["theirs"]
        assert card["mine"] == {
            "Summary": "mine: the summary",
            "Intended use": "mine: the use",
            "Limitations": "theirs: the limits",
        }
        page.until("card saved")
        sections = client.cards.sections("edited")
        assert sections.summary == "mine: the summary"
        assert sections.intended_use == "mine: the use"
        assert sections.limitations == "theirs: the limits"
        rule = page.until("rule")
        assert "Switched: on" in rule["told"]
        assert rule["choices"] == ["Leave it so"], "it is off already"
        assert "described meanwhile" in page.until("rule again")["told"]
        alias = page.until("alias")
        assert "names version 2 by now" in alias["told"]
        assert alias["typed"] == "champion"
        page.until("alias moved")
        assert client.models.version("edited@champion").version == 1
        page.until("done")
        assert process.wait(30) == 0
        rule_now = client.alerts.rule("two-tabs")
        assert (rule_now.disabled, rule_now.description) == (False, "described meanwhile")


@pytest.mark.browser
def test_axe_finds_nothing_serious_in_any_view(npm: Callable[..., None], furnished: Platform) -> None:
    npm(FOLDER)
    with furnished.client() as client:
        failed = client.jobs.submit({**spec(12), "dataset": "nothing-such"})
        running = client.jobs.submit({**spec(1_000_000), "experiment": "endless"})
        wait_state(client, failed.name, "FAILED")
        wait_step(client, running.name, 20)
        waiting = client.jobs.submit(spec(12))
        ended = next(job for job in client.jobs.list() if job.proto.spec.experiment == "walked")
        names = {
            "base": "tiny",
            "dataset": "sums",
            "mails": "sums",
            "prompt": "plain",
            "model": "walked",
            "evaluation": next(iter(client.evaluations.list())).name.rsplit("/", 1)[-1],
            "node": next(iter(client.nodes.list())).node_id,
            "running": running.id,
            "ended": ended.id,
            "failed": failed.id,
            "waiting": waiting.id,
            "runs": f"{running.id},{ended.id}",
            "sweep": "walks",
        }
        command = ["node", "axe.mjs", furnished.http, furnished.token, browser(), json.dumps(names)]
        done = subprocess.run(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True, timeout=300)
        for job in (waiting, running):
            client.jobs.get(job.name).cancel(now=True)
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert seen[-1] == {"saw": "done"}, seen[-1]
    assert len(seen) > 30
    assert [view for view in seen if view.get("light") or view.get("dark")] == []
