"""A registry that dies by SIGKILL in the middle of an import: nothing half-visible, nothing left behind."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.platform import Platform, embedded
from tests.support.processes import BIN, Process, clean_environment, runs, wait_for
from tunesmith import Client

NUM_ROWS = 5_000  # 20 MB: checked by processes of their own
Look = Callable[[], bool]


def _rows(path: Path, name: str) -> None:
    answer = "word " * 800
    with path.open("w") as file:
        for number in range(NUM_ROWS):
            texts = (("user", f"{name} {number}"), ("assistant", answer))
            turns = [{"role": role, "content": text} for role, text in texts]
            file.write(json.dumps({"messages": turns}) + "\n")


def _stored(blobs: Path) -> set[str]:
    return {path.name for path in (blobs / "sha256").rglob("*") if path.is_file()}


def _largest(folder: Path, old: set[Path]) -> int:
    sizes = [0]
    for path in set(folder.iterdir()) - old:
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return max(sizes)


def _instants(blobs: Path) -> list[tuple[str, Callable[[], Look]]]:
    """Instants by name; each begins to look at the store as it is right before the import."""

    def grown(folder: str) -> Look:
        old = set((blobs / folder).iterdir())
        return lambda: _largest(blobs / folder, old) > 2_000_000

    def more(count: int) -> Look:
        wanted = len(_stored(blobs)) + count
        return lambda: len(_stored(blobs)) >= wanted

    return [
        ("upload", lambda: grown("uploads")),
        ("check", lambda: grown("tmp")),
        ("content", lambda: more(2)),  # the upload and the rows, no manifest
        ("manifest", lambda: more(3)),
    ]


@contextmanager
def _importing(platform: Platform, path: Path) -> Iterator[None]:
    settings = {"TUNESMITH_ADDRESS": platform.address, "TUNESMITH_TOKEN": platform.token}
    child = subprocess.Popen(
        [str(BIN / "tunesmith"), "datasets", "import", str(path), "--id", path.stem],
        env=clean_environment({**settings, "TUNESMITH_CONFIG_DIR": str(platform.root)}),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        child.kill()
        child.wait()


def _kill(process: Process) -> None:
    """Kills the platform; the processes that checked for it end by themselves."""
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child.pid for child in children if "tunesmith_registry.data.worker" in child.cmdline()]
    process.kill()
    wait_for(lambda: not any(map(runs, workers)), 20, "the workers have ended")


def _soon(look: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not look():  # without a pause: what is waited for lasts milliseconds
        assert time.monotonic() < deadline, what


def _visible(client: Client, name: str) -> list[int]:
    names = [dataset.name.rpartition("/")[2] for dataset in client.datasets.list()]
    return [v.num_rows for v in client.datasets.versions(name)] if name in names else []


def test_a_kill_at_any_instant_leaves_all_or_nothing_and_the_sweep_the_rest(tmp_path: Path) -> None:
    blobs = tmp_path / "data" / "blobs"
    names: list[str] = []
    lost: list[str] = []
    for name, reached in _instants(blobs):
        path = tmp_path / f"{name}.jsonl"
        _rows(path, name)
        with embedded(tmp_path) as platform:
            lost += _mended(platform, tmp_path, names[-1:])
            with _importing(platform, path):
                _soon(reached(), name)
                _kill(platform.processes["up"])
        names.append(name)
    with embedded(tmp_path) as platform:
        lost += _mended(platform, tmp_path, names[-1:])
    assert lost[:2] == ["upload", "check"], "these kills came in time for sure"
    _age(blobs)
    with embedded(tmp_path) as platform, platform.client() as client:
        left = ("tmp", "uploads")
        wait_for(lambda: not any(list((blobs / folder).iterdir()) for folder in left), 20, "the sweep")
        list(client.exports.collect_garbage(dry_run=False))
        versions = [version for name in names for version in client.datasets.versions(name)]
        kept = {v.digest for v in versions} | {f.sha256 for v in versions for f in v.manifest.files}
        assert _stored(blobs) == kept, "what no version names is gone"


def _mended(platform: Platform, root: Path, names: list[str]) -> list[str]:
    """Looks at what the last kill left, imports it again, and returns what had been lost."""
    lost = []
    with platform.client() as client:
        for name in names:
            found = _visible(client, name)
            assert found in ([], [NUM_ROWS]), f"all or nothing after a kill at {name}"
            lost += [] if found else [name]
            client.datasets.import_file(root / f"{name}.jsonl", name)
            assert _visible(client, name) == [NUM_ROWS]
    return lost


def _age(blobs: Path) -> None:
    long_ago = time.time() - 1000 * 3600
    for path in blobs.rglob("*"):
        if path.is_file():
            os.utime(path, (long_ago, long_ago))
