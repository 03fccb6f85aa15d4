"""What lies deeper in the page: runs compared, a job's checkpoints and time, a server lost and found."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import numpy as np
import pytest

from tests.clients.test_page import FOLDER, Onlooker, browser
from tests.support.jobs import spec, wait_state, wait_step
from tests.support.platform import Platform
from tests.support.processes import wait_for
from tests.support.proxy import Proxy
from tunesmith import Client
from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus

_NUM_RUNS, _NUM_STEPS = 48, 60
_NUM_LONG, _SPIKE = 100_000, 65_432
_NUM_WIDE = 2000
_RATES = (0.001, 0.003, 0.01, 0.03)
HOSTILE = '<script>alert("sweep")</script> \u202egpj.exe \N{FIRE}'


class Sweep:
    """Runs that the platform knows, with points that are put on the bus as an agent does."""

    def __init__(self, platform: Platform, client: Client) -> None:
        self._platform = platform
        self.lasts: dict[str, float] = {}  # by readable name: the last loss
        self.rates: dict[str, float] = {}
        self.wide = self._strange()
        jobs: list[tuple[str, Any]] = []
        steps = np.arange(1, _NUM_STEPS + 1)
        for at in range(_NUM_RUNS):
            rate = _RATES[at % len(_RATES)]
            # Without a base model they are refused at once: only their settings and points matter here.
            job = client.jobs.submit(
                {
                    **spec(_NUM_STEPS, learning_rate=rate, seed=at + 1),
                    "experiment": "sweep",
                    "base_model": "none",
                    "dataset": "none",
                    "labels": {"sweep": "rates"},
                }
            )
            curve = 2 * np.exp(-steps * rate) + at / 1000
            jobs.append((job.id, curve))
            self.rates[job.display_name], self.lasts[job.display_name] = rate, float(curve[-1])
        self.long = client.jobs.submit({"experiment": "long", "base_model": "none", "dataset": "none"})
        noise = np.random.default_rng(1).normal(scale=0.02, size=_NUM_LONG)
        noise[_SPIKE - 1] = 5.0
        jobs.append((self.long.id, 1 + noise))
        asyncio.run(self._send(jobs))

        def stored() -> bool:
            found = client.runs.query("has `train/loss`", limit=1000)
            points = {run.num_points for run in found}
            wide = client.runs.query("has `strange/m1999` and has `strange/nothing`", limit=1).total
            return {run.name for run in found} >= self.lasts.keys() and _NUM_LONG in points and bool(wide)

        wait_for(stored, 60, "every point is stored")

    def _strange(self) -> str:
        """Two runs of other programs in a sweep whose name bites; the first, whose id is returned, has 2,000
        metrics, one of which is never a number."""
        ids = []
        for at in range(2):
            with self._platform.rest() as rest:
                config = {"<img src=x onerror=alert(1)>": f"\u202eesrever {at}", "long": f"{at}" * 2_000}
                run = {"experiment": "strange", "labels": {"sweep": HOSTILE}, "external": {"config": config}}
                begun = _said(rest.post("/api/v1/projects/default/externalRuns", json=run))
                values = {f"strange/m{key}": key + step for key in range(_NUM_WIDE) for step in [at]}
                records = [
                    {"step": step, "values": {**values, "strange/nothing": "NaN", "eval/loss": at}}
                    for step in range(1, 4)
                ]
                path = f"/api/v1/{begun['job']['name']}"
                _said(rest.post(f"{path}/records", json={"epoch": 1, "first_seq": 1, "records": records}))
                _said(rest.post(f"{path}:finish", json={"epoch": 1}))
                ids.append(begun["job"]["job_id"])
        return str(ids[0])

    async def _send(self, jobs: list[tuple[str, Any]]) -> None:
        (ports,) = (self._platform.root / "data" / "nats").glob("*.ports")
        bus = await Bus.connect(
            json.loads(ports.read_text())["nats"][0], self._platform.nats_token, "agent", ensure_streams=False
        )
        for job_id, values in jobs:
            for first in range(0, len(values), 10_000):
                part = values[first : first + 10_000]
                matrix = events_pb2.MetricMatrix(
                    key_indices=[0],
                    step_deltas=[first + 1] + [1] * (len(part) - 1),
                    time_deltas_us=[1_790_000_000_000_000 + first * 10_000] + [10_000] * (len(part) - 1),
                    values=part.tolist(),
                )
                batch = events_pb2.MetricBatch(
                    job_id=job_id, epoch=1, rank=0, first_seq=first + 1, num_records=len(part),
                    keys=["train/loss"], matrices=[matrix],
                )  # fmt: skip
                subject = subjects.metrics("default", job_id, 1, 0)
                await bus.publish(subject, batch.SerializeToString(), f"{job_id}:1:0:{first + 1}")
        await bus.close()

    def at(self, rate: float) -> list[str]:
        """The names of the runs with a learning rate, the least loss first."""
        return sorted((name for name in self.lasts if self.rates[name] == rate), key=self.lasts.__getitem__)


def _said(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def sweep(platform: Platform) -> Sweep:
    """Runs to compare."""
    with platform.client() as client:
        return Sweep(platform, client)


@pytest.fixture
def proxy(platform: Platform) -> Iterator[Proxy]:
    """The way of the browser to the platform."""
    address = urlsplit(platform.http)
    assert address.hostname is not None
    assert address.port is not None
    with contextlib.closing(Proxy(address.hostname, address.port)) as way:
        yield way


def _spearman(x: list[float], y: list[float]) -> float:
    def ranks(values: list[float]) -> list[float]:
        return [fmean(at for at, other in enumerate(sorted(values), 1) if other == value) for value in values]

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def _compared(page: Onlooker, sweep: Sweep) -> None:
    chosen = page.until("chosen")
    assert sorted(chosen["names"]) == sorted(chosen["from"])
    assert chosen["boxes"] == 2
    every = page.until("all")
    assert every["all"] == _NUM_RUNS + 4
    assert every["drawn"] < _NUM_RUNS, "only what is in sight is in the document"
    assert "base_model" not in page.until("differences")["rows"] or "long" in str(chosen["names"])
    mistake = page.until("mistake")
    assert (mistake["before"], mistake["at"]) == ("train/loss <", "<")
    assert "expected a number" in mistake["words"]
    ordered = page.until("sorted")
    assert ordered["names"] == sweep.at(0.01)
    assert ordered["before"] == ordered["after"], "a run keeps its colour, wherever it stands"
    assert len(set(ordered["after"].values())) > len(ordered["after"]) // 2, "most runs have one of their own"
    lines = page.until("groups")["lines"]
    assert len(lines) == len(_RATES)
    for rate, line in zip(_RATES, lines, strict=True):
        mean = fmean(sweep.lasts[name] for name in sweep.at(rate))
        name, value = line.split("\n") if "\n" in line else line.rsplit(" ", 1)
        assert name.startswith(f"{rate:g} ({_NUM_RUNS // len(_RATES)})")
        assert float(value) == pytest.approx(mean, rel=1e-3)
    assert page.until("scatter")["points"] == _NUM_RUNS
    weights = page.until("weights")
    names = list(sweep.lasts)
    weight = _spearman([sweep.rates[name] for name in names], [sweep.lasts[name] for name in names])
    assert float(weights["weight"].replace("\N{MINUS SIGN}", "-")) == pytest.approx(weight, abs=0.006)
    assert weights["first"] == "training.learning_rate"
    assert page.until("kept")["words"].startswith(f"{_NUM_RUNS // len(_RATES)} of {_NUM_RUNS} runs")
    assert max(page.until("narrow")["wide"]) <= 0


def _lost_and_found(page: Onlooker, proxy: Proxy, client: Client, name: str) -> None:
    page.until("training")
    before = wait_step(client, name, 50).proto.progress.step
    proxy.reset()
    page.until("lost")
    wait_step(client, name, before + 200)
    client.jobs.get(name).pause()
    wait_state(client, name, "PAUSED")
    proxy.heal()
    found = page.until("found")
    steps = [step for step in found["steps"] if step > 0]
    gaps = [b - a for a, b in pairwise(steps)]
    assert steps[-1] >= 0.98 * found["step"], "the newest points are there"
    assert max(gaps) <= max(60, found["step"] / 20), "the curve has a hole where the server was away"


@pytest.mark.browser
def test_runs_are_compared_and_a_job_is_looked_into(
    npm: Callable[..., None], platform: Platform, sweep: Sweep, proxy: Proxy, tmp_path: Path
) -> None:
    npm(FOLDER)
    chromium = browser()
    with platform.client() as client:
        walked = client.jobs.submit(
            {
                **spec(100_000, checkpoint_every_steps=100, eval_fraction=0.2, eval_every_steps=100),
                "experiment": "walked",
            }
        )
        command = ["node", "depth.mjs", f"http://{proxy.address}", platform.token, chromium, str(tmp_path)]
        with subprocess.Popen(
            [*command, sweep.long.id, walked.id], cwd=FOLDER, stdout=subprocess.PIPE, text=True
        ) as process:
            page = Onlooker(process)
            _compared(page, sweep)
            spike = page.until("spike")
            assert spike["columns"] > 0, "one point of 100,000 is seen at full width"
            assert spike["from"] == pytest.approx(_SPIKE / _NUM_LONG, abs=0.01)
            assert spike["to"] == pytest.approx(_SPIKE / _NUM_LONG, abs=0.01)
            assert "zoom=" in spike["zoomed"]
            _lost_and_found(page, proxy, client, walked.name)
            page.until("made")
            assert client.models.version("from-checkpoint@1").name.endswith("/versions/1")
            resumed = page.until("resumed")
            assert f"step {resumed['chosen']}" in resumed["words"].replace("\n", " ")
            assert {"queued", "paused", "1 · running", "2 · running"} <= set(resumed["rows"])
            trace = page.until("trace")
            assert {"CreateJob", "queued", "launch", "load_model", "first_step 1"} <= set(trace["rows"])
            assert "agent" in trace["facts"]
            assert "attempt 2" in trace["facts"]
            assert trace["bars"] >= len(trace["rows"])
            jumped = page.until("jumped")
            assert jumped["line"] >= jumped["step"] > 0
            depths = page.until("depths")
            assert depths["axes"] == ["time", "tokens", "epoch"]
            assert {"torch", "device", "python", "host"} <= set(depths["facts"])
            assert depths["kpis"].keys() >= {"loss", "flops", "memory", "checkpoint", "lost"}
            assert "FLOP/s" in depths["kpis"]["flops"]
            assert depths["kpis"]["memory"].endswith(" MB")
            assert depths["kpis"]["lost"] == "0 s", "a pause is no fault"
            assert {"base_model", "environment.torch"} <= set(page.until("beside")["rows"])
            phone = page.until("telephone")
            assert phone["wide"] <= 0, phone["beyond"]
            page.until("done")
            assert process.wait(30) == 0
        client.jobs.get(walked.name).cancel(now=True)


@pytest.mark.browser
def test_sweeps_are_judged_compared_and_survive_what_is_strange(
    npm: Callable[..., None], platform: Platform, sweep: Sweep, tmp_path: Path
) -> None:
    npm(FOLDER)
    words = (str(tmp_path), sweep.wide, HOSTILE)
    command = ["node", "sweeps.mjs", platform.http, platform.token, browser(), *words]
    best, worst = min(sweep.lasts, key=sweep.lasts.__getitem__), max(sweep.lasts, key=sweep.lasts.__getitem__)
    with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process:
        page = Onlooker(process)
        row = page.until("list")
        assert f"{_NUM_RUNS}" in row["row"]
        assert "failed" in row["row"]
        assert best in row["row"]
        assert len(row["names"]) == 2
        assert row["listings"] == 1, "the page of jobs is asked for once, not over and over"
        one = page.until("sweep")
        assert best in one["best"]
        assert one["first"] == best
        assert "V" in one["stairs"], "the best so far comes down in steps"
        assert page.until("turned")["first"] == worst
        assert page.until("matters")["first"] == "training.learning_rate"
        assert max(page.until("narrow")["wide"]) <= 0
        compared = page.until("compared")
        assert compared["all"] == str(_NUM_RUNS)
        assert "runs=*" in unquote(compared["address"])
        assert not any(name in compared["address"] for name in sweep.lasts), "the filter says which"
        assert compared["pointed"] in sweep.lasts
        assert "runs=*0" in unquote(compared["but"]), "one is taken out"
        assert compared["after"] == str(_NUM_RUNS - 1)
        many = page.until("many metrics")
        assert str(_NUM_WIDE + 2) in many["placeholder"]
        assert many["shown"] < 40, "thousands of buttons would be no choice"
        assert many["found"] == 1
        assert many["nodes"] < 2000
        assert page.until("curve of nothing")["value"] == "\N{EN DASH}"
        assert 0 < page.until("many columns")["offered"] <= 200
        hostile = page.until("hostile")
        assert hostile["title"] == HOSTILE.replace("\u202e", "\u27e8U+202E\u27e9")
        assert "\u202e" not in hostile["cells"]
        assert hostile["scripts"] == 0
        assert hostile["wide"] <= 0
        page.until("done")
        assert process.wait(30) == 0
