"""The page in a real browser, against the real platform."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import spec
from tests.support.platform import Platform

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


@pytest.mark.browser
def test_the_page_shows_a_job_live_from_submission_to_its_end(
    npm: Callable[..., None], platform: Platform, tmp_path: Path
) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None or not STATIC.exists():
        pytest.skip("no Chromium here, or the page is not built (make web)")
    npm(FOLDER)
    command = ["node", "page.mjs", platform.http, platform.token, chromium, str(tmp_path)]
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
