"""Home, the new job and the audit in a real browser, against the real platform."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.clients.test_page import FOLDER, Onlooker, browser
from tests.support.jobs import spec
from tests.support.platform import Platform


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
