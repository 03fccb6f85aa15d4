"""Home, the new job and the audit in a real browser, against the real platform."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.clients.test_page import FOLDER, Onlooker, browser
from tests.support.jobs import spec
from tests.support.platform import Platform, tiny_model
from tests.support.programs import Programs


@pytest.mark.browser
def test_the_page_leads_from_an_empty_platform_to_a_running_job(
    npm: Callable[..., None], platform: Platform, tmp_path: Path
) -> None:
    npm(FOLDER)
    command = ["node", "start.mjs", platform.http, platform.token, browser(), str(tmp_path)]
    with (
        subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process,
        platform.client() as client,
    ):
        page = Onlooker(process)
        assert page.until("empty")["ready"] is False
        step = page.until("in step")
        assert "no run to learn from yet" in step["told"]
        assert "at once" in step["told"]
        assert step["marked"] == "  learning_rate: 30"
        assert step["rate"] == "30"
        assert step["beside"].startswith("must be at most 10")
        assert "did you mean training.num_epochs?" in step["hint"]
        assert step["ready"] is False
        bad = page.until("bad input")
        assert "\u202e" not in bad["file"], "what would reorder letters is written as an escape"
        prompts = yaml.safe_load(bad["file"])["sample_prompts"]
        assert prompts == ['<script>alert("prompt")</script> \u202egpj.exe']
        assert bad["scripts"] == 0
        cut = page.until("interrupted")
        assert yaml.safe_load(cut["kept"])["sample_prompts"] == prompts
        assert "num_epochs" not in yaml.safe_load(cut["now"])["training"]
        started = page.until("started")
        client.jobs.submit({**spec(1_000_000), "experiment": "third"})
        first = client.jobs.get(started["id"]).proto
        assert list(first.spec.sample_prompts) == prompts
        assert first.spec.training.max_steps == 20
        assert yaml.safe_load(started["file"])["training"]["learning_rate"] == 5e-4
        home = page.until("home")
        assert "third-" in home["waiting"]
        assert "1 running" in home["running"]
        audit = page.until("audit")
        assert audit["all"] >= 3
        assert "sums@1" in audit["row"]
        assert page.until("telephone")["wide"] == []
        page.until("done")
        assert process.wait(30) == 0
        names = sorted(job.proto.spec.experiment for job in client.jobs.list())
        assert names == ["first", "second", "third"], "a double click makes one job"


@pytest.mark.browser
def test_what_a_program_of_ones_own_saves_is_seen_at_once_and_made_a_version(
    npm: Callable[..., None], platform: Platform, tmp_path: Path
) -> None:
    npm(FOLDER)
    shutil.copytree(tiny_model(), tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json"))
    with Programs(platform, tmp_path).start(
        "run = tunesmith.init(experiment='saves')\n"
        "run.log({'train/loss': 1.0}, 7)\n"
        "say(run.id)\n"
        "sys.stdin.readline()\n"
        "run.checkpoint('model', metrics={'eval/loss': 0.25})\n"
        "sys.stdin.readline()\n"
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        run = program.stdout.readline().strip()
        command = ["node", "saved.mjs", platform.http, platform.token, browser(), run]
        with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process:
            page = Onlooker(process)
            page.until("nothing saved")
            program.stdin.write("\n")
            program.stdin.flush()
            saved = page.until("saved")
            assert "0.25" in saved["text"]
            assert saved["buttons"] == ["pin", "make version"], "no job can go on from it"
            assert saved["wide"] <= 390
            made = page.until("made")
            page.until("done")
            assert process.wait(30) == 0
        program.communicate("\n", timeout=60)
    with platform.client() as client:
        version = client.models.version("saved@1")
        digest = version.derived_from.rpartition("/")[2]
        assert made["text"].strip() == f"checkpoint {digest[:8]}"
        assert version.metrics["eval/loss"] == 0.25
