"""Checkpoints, pictures and the like of programs of one's own: kept whatever becomes of the program."""

import asyncio
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.platform import Platform, tiny_model
from tests.support.processes import wait_for
from tests.support.programs import Programs, losses
from tunesmith import AsyncClient, Client, FailedPrecondition, InvalidArgument
from tunesmith.blobs import download

_SECONDS = 60


@pytest.fixture
def programs(embedded_platform: Platform, tmp_path: Path) -> Programs:
    return Programs(embedded_platform, tmp_path)


def kept(client: Client, run: str, *steps: int) -> Any:
    """Waits until the registry lists the checkpoints of a run, newest first, and returns them."""
    job = client.jobs.get(run)

    def look() -> Any:
        found = [point for point in job.checkpoints() if not point.expired]
        return found if [point.step for point in found] == list(steps) else None

    return wait_for(look, _SECONDS, f"checkpoints of {run} at steps {steps}")


def contents(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of a downloaded checkpoint."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def picture(platform: Platform, digest: str, to: Path) -> None:
    """Downloads a picture."""

    async def fetch() -> None:
        async with AsyncClient(address=platform.address, token=platform.token) as client:
            await download(client.jobs._core, digest, to)

    asyncio.run(fetch())


def test_a_checkpoint_outlives_its_program_and_comes_once(platform: Platform, tmp_path: Path) -> None:
    programs = Programs(platform, tmp_path)
    code, out, err = programs.run(
        "import os, pathlib, signal\n"
        "out = pathlib.Path('out'); (out / 'deep').mkdir(parents=True)\n"
        "(out / 'model.pt').write_bytes(bytes(range(256)) * 80_000)\n"  # worth resuming
        "(out / 'deep' / 'state.json').write_text('{}')\n"
        "run = tunesmith.init(experiment='saves')\n"
        "run.log({'train/loss': 1.0}, 7)\n"
        "run.checkpoint(out, metrics={'eval/loss': 0.25})\n"
        "say(run.id)\n"
        "with (out / 'model.pt').open('r+b') as file: file.write(b'the next one')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert code == -9, err
    job_id = out.strip()
    (folder,) = programs.left()
    shutil.copytree(folder / "parcels", tmp_path / "again", ignore_dangling_symlinks=True)
    told = programs.sync("--end", "failed")
    assert (told[0]["outcome"], programs.left()) == ("ended", [])
    with platform.client() as client:
        assert losses(client, job_id) == ([7], [1.0])
        (point,) = kept(client, job_id, 7)
        assert (point.external, point.eval_loss, point.size_bytes) == (True, 0.25, 80_000 * 256 + 2)
        back = tmp_path / "back"
        done = platform.run("checkpoints", "download", job_id, str(back), "--step", "7")
        assert done.returncode == 0, done.stderr
        assert contents(back) == {
            "model.pt": hashlib.sha256(bytes(range(256)) * 80_000).hexdigest(),
            "deep/state.json": hashlib.sha256(b"{}").hexdigest(),
        }
        revision = client.jobs.get(job_id).proto.revision
        client.external.put_checkpoint(job_id, 1, _parcel(tmp_path / "again"))
        assert client.jobs.get(job_id).proto.revision == revision, "the same checkpoint is entered once"
        with pytest.raises(FailedPrecondition) as refused:
            client.jobs.get(job_id).fork()
        assert refused.value.reason == "CHECKPOINT_EXTERNAL"
        with pytest.raises(InvalidArgument, match="pickle"):
            client.versions.register_checkpoint("mine", job_id, base_model="tiny")


def _parcel(folder: Path) -> Any:
    from tunesmith.parcel import Parcel

    return Parcel.open(folder / "000001")


def test_a_model_that_a_program_saved_becomes_a_version_that_says_where_it_is_from(
    programs: Programs,
) -> None:
    shutil.copytree(tiny_model(), programs.folder / "model", ignore=shutil.ignore_patterns("manifest.json"))
    code, out, err = programs.run(
        "run = tunesmith.init(experiment='tuned')\n"
        "for step in (10, 20, 30):\n"
        "    run.log({'train/loss': 1 / step}, step)\n"
        "    run.checkpoint('model', keep=2, metrics={'eval/loss': 1 / step, 'note': step})\n"
        "say(run.name)\n"
    )
    assert (code, programs.left()) == (0, []), err
    name = out.strip()
    with programs.platform.client() as client:
        newest, older = kept(client, name, 30, 20)
        assert newest.digest != older.digest, "their numbers differ"
        assert client.jobs.get(name).proto.checkpoint.step == 30
        shown = json.loads(programs.platform.run("checkpoints", "list", name, "--json").stdout)
        assert [(point["step"], point["external"]) for point in shown] == [("30", True), ("20", True)]
        args = ("models", "register", f"job:{name}@20", "tuned", "--base", "tiny", "--json")
        done = programs.platform.run(*args)
        assert done.returncode == 0, done.stderr
        version = json.loads(done.stdout)
        assert (version["derived_from"], version["metrics"]) == (
            older.name,
            {"eval/loss": 0.05, "note": 20.0},
        )
        graph = client.lineage.graph(version["name"])
        assert client.jobs.get(name).name in {node.name for node in graph.nodes}
        evaluated = programs.platform.run(
            "evaluate", f"job:{name}@20", "--dataset", "sums", "--scorer", "bleu"
        )
        assert (evaluated.returncode, "tunesmith models register" in evaluated.stderr) == (4, True)
        wrong = programs.platform.run("models", "register", f"job:{name}@10", "tuned", "--base", "tiny")
        assert (wrong.returncode, "no checkpoint of step 10" in wrong.stderr) == (3, True)


def test_pictures_texts_and_distributions_are_stored_in_order_with_the_numbers(
    programs: Programs, tmp_path: Path
) -> None:
    code, out, err = programs.run(
        "class Pixels:\n"
        "    shape, dtype = (2, 3, 3), 'uint8'\n"
        "    def tobytes(self): return bytes(range(18))\n"
        "run = tunesmith.init(experiment='looks')\n"
        "for step in range(3):\n"
        "    run.log({'train/loss': float(step)}, step)\n"
        "    run.log_text('answer', f'it is <b>{step}</b>')\n"
        "    run.log_image('sample', Pixels(), caption='same each time')\n"
        "    run.log_histogram('grad', [0.0, 0.1, 0.9, 1.0, float('nan')], buckets=2)\n"
        "    run.log_histogram('given', ([0, 1, 2], [step, 4]))\n"
        "say(run.id)\n"
    )
    assert (code, programs.left()) == (0, []), err
    job_id = out.strip()
    with programs.platform.client() as client:
        assert losses(client, job_id) == ([0, 1, 2], [0.0, 1.0, 2.0])
        found = {(point.step, point.key): point for point in client.metrics.rich(job_id)}
        assert len(found) == 12
        assert [found[step, "answer"].text for step in range(3)] == [f"it is <b>{n}</b>" for n in range(3)]
        assert list(found[1, "grad"].histogram.counts) == [2, 2]
        assert list(found[2, "given"].histogram.counts) == [2, 4]
        look = found[0, "sample"].picture
        assert (look.width, look.height, look.media_type) == (3, 2, "image/png")
        picture(programs.platform, look.digest, tmp_path / "picture.png")
        from PIL import Image

        with Image.open(tmp_path / "picture.png") as image:
            assert image.tobytes() == bytes(range(18))
        assert client.external.write(job_id, 1).metrics_seq == 15, "each record has a number of its own"
        held = list(programs.platform.root.glob(f"**/holds/{job_id}/*"))
        assert [path.name for path in held] == [look.digest]
        client.jobs.get(job_id).delete()
        wait_for(lambda: not held[0].exists() or None, _SECONDS, "a deleted run holds nothing")


def test_what_cannot_be_saved_is_refused_at_once_with_what_to_do(programs: Programs) -> None:
    code, out, err = programs.run(
        "import os, pathlib\n"
        "run = tunesmith.init(experiment='full', offline=True, max_waiting_bytes=1000)\n"
        "def reason(act):\n"
        "    try: act()\n"
        "    except tunesmith.TunesmithError as error: say(error.reason, bool(error.remedy))\n"
        "    else: say('-')\n"
        "here = pathlib.Path('here'); here.mkdir()\n"
        "reason(lambda: run.checkpoint(here))\n"
        "reason(lambda: run.checkpoint('nowhere'))\n"
        "(here / 'a').write_bytes(b'x' * 900)\n"
        "reason(lambda: run.checkpoint(here, step=1))\n"
        "reason(lambda: run.checkpoint(here, step=2))\n"
        "os.mkfifo(here / 'pipe')\n"
        "reason(lambda: run.checkpoint(here))\n"
        "reason(lambda: run.log_image('a', b'no picture'))\n"
        "reason(lambda: run.log_histogram('a', [float('nan')]))\n"
        "reason(lambda: run.log_text('\\n', 'x'))\n"
        "say(sorted(path.name for path in (run.folder / 'parcels').iterdir()))\n"
    )
    assert code == 0, err
    assert out.splitlines() == [
        "FIELD_INVALID True", "FIELD_INVALID True", "-", "SPOOL_FULL True",
        *["FIELD_INVALID True"] * 4, "['000001']",
    ]  # fmt: skip


def test_an_alert_watches_a_program_of_ones_own(programs: Programs) -> None:
    rules = programs.folder / "alerts.yaml"
    where = "selector: {experiment: watched}"
    rules.write_text(
        f"""
rules:
  own-nan: {{condition: {{not_finite: {{key: train/loss}}}}, {where}}}
  own-high: {{condition: {{threshold: {{key: train/loss, comparison: above, value: 5}}}}, {where}}}
  own-idle: {{condition: {{no_progress: {{duration: 1s}}}}, {where}}}
"""
    )
    done = programs.platform.run("alerts", "apply", str(rules))
    assert done.returncode == 0, done.stderr
    with (
        programs.start(
            "run = tunesmith.init(experiment='watched')\n"
            "for step, loss in enumerate([1.0, 9.0, float('nan')]): run.log({'train/loss': loss}, step)\n"
            "say(run.id)\n"
            "sys.stdin.readline()\n"
        ) as program,
        programs.platform.client() as client,
    ):
        assert program.stdout is not None
        job_id = program.stdout.readline().strip()

        def fired() -> bool | None:
            mine = [alert for alert in client.alerts.list() if job_id in alert.subject]
            names = {alert.rule.rpartition("/")[2] for alert in mine}
            return names == {"own-nan", "own-high", "own-idle"} or None

        wait_for(fired, _SECONDS, "all three rules fired for the run")
        program.communicate("\n", timeout=_SECONDS)
        for name in ("own-nan", "own-high", "own-idle"):
            client.alerts.delete(name)
