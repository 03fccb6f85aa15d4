"""A user's whole day in a real browser, against the real platform."""

import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.test_page import FOLDER, Onlooker, browser
from tests.support.platform import Platform, dialogues
from tunesmith.api.jobs.v1 import state_pb2


@pytest.mark.browser
def test_a_whole_day_passes_in_the_page_alone(
    npm: Callable[..., None], platform: Platform, tmp_path: Path
) -> None:
    npm(FOLDER)
    data = dialogues(tmp_path / "Support.jsonl", 200)
    command = ["node", "day.mjs", platform.http, platform.token, browser(), str(tmp_path), str(data)]
    with (
        subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process,
        platform.client() as client,
    ):
        page = Onlooker(process)
        assert "/datasets/support" in page.until("imported")["url"]
        assert client.datasets.get("support").latest.num_rows == 200
        trained = page.until("trained")
        states = [event.state_changed.to_state for event in client.jobs.get(trained["id"]).events()]
        assert state_pb2.JOB_STATE_PAUSED in states
        first, second = (client.jobs.get(page.until(name)["id"]) for name in ("trained", "trained again"))
        assert (first.proto.progress.step, second.proto.progress.step) == (200, 200)
        assert second.proto.spec.training.learning_rate == 0.001
        assert "training.learning_rate" in page.until("compared")["rows"]
        evaluated = page.until("evaluated")
        assert evaluated["models"] == ["tiny", "day@2"]
        assert "perplexity" in evaluated["better"]
        (evaluation,) = client.evaluations.list(dataset="support")
        assert [target.name.rsplit("/", 1)[-1] for target in evaluation.targets] == ["tiny", "2", "1"]
        page.until("promoted")
        assert client.models.get("day").production.version == 2
        page.until("chatted")
        assert page.until("exported")["file"] == "day-2.tar"
        assert client.models.version("day-merged@1").version == 1
        page.until("done")
        assert process.wait(30) == 0
    with tarfile.open(tmp_path / "day.tar") as archive:
        assert any(name.endswith("adapter_model.safetensors") for name in archive.getnames())
