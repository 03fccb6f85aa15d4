"""The 20-line subscriber of examples/ hears what happens to jobs."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.jobs import spec
from tests.support.platform import Platform

EXAMPLE = Path(__file__).parents[2] / "examples" / "subscriber.py"


def test_the_example_prints_states_and_checkpoints_past_ones_too(platform: Platform) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 20
    with platform.client() as client:
        past = client.jobs.submit({**spec(4, checkpoint_every_steps=2), "experiment": "past"}).wait(
            timeout=90
        )
        ports = next((platform.root / "data" / "nats").glob("*.ports"))
        settings = {
            "TUNESMITH_NATS_URL": json.loads(ports.read_text())["nats"][0],
            "TUNESMITH_NATS_TOKEN": platform.nats_token,
        }
        with subprocess.Popen(
            [sys.executable, str(EXAMPLE)], env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
        ) as subscriber:
            assert subscriber.stdout is not None
            live = client.jobs.submit({**spec(4), "experiment": "live"})
            heard: list[str] = []
            for line in subscriber.stdout:
                heard.append(line)
                if line.startswith(live.display_name) and "JOB_STATE_SUCCEEDED" in line:
                    break
            subscriber.terminate()
    mine = [line for line in heard if line.startswith(past.display_name)]
    assert any("step: 2 epoch: 1" in line for line in mine)
    assert "to_state: JOB_STATE_SUCCEEDED" in mine[-1]
