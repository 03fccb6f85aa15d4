"""Imports, duplicates, uploads and downloads of the registry, beside a plain copy with SHA-256.

`python -m bench.registry_import [--megabytes N] [--near-rows N] [--rounds N]`. The copy is the named rival:
read, hash, write and fsync of the same bytes by one process, into a new file as an upload is one, on the same
disk, right before and right after each transfer. Ratios are medians over the rounds; processor seconds a GB
are of all processes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tests.support.platform import Platform, embedded

_WORDS = [f"{start}{end}" for start in "bcdfghklmnprst" for end in ("a", "en", "ist", "or", "um", "ela")]


def rows(path: Path, megabytes: int) -> int:
    """Writes conversations of some 450 bytes a row; returns how many."""
    draw, count = random.Random(5), 0
    with path.open("w") as file:
        while file.tell() < megabytes * 1_000_000:
            for _ in range(1000):
                texts = [
                    f"{count} {' '.join(draw.choices(_WORDS, k=55))}",
                    " ".join(draw.choices(_WORDS, k=35)),
                ]
                turns = [
                    {"role": role, "content": text}
                    for role, text in zip(("user", "assistant"), texts, strict=True)
                ]
                file.write(json.dumps({"messages": turns}) + "\n")
                count += 1
    return count


def plain_copy(source: Path, to: Path) -> None:
    """Copies with SHA-256 and fsync."""
    hasher = hashlib.sha256()
    with source.open("rb") as file, to.open("wb") as out:
        while data := file.read(1 << 20):
            hasher.update(data)
            out.write(data)
        out.flush()
        os.fsync(out.fileno())


_IMPORT = """
import json, resource, sys, time
from pathlib import Path
from tunesmith.api.registry.v1 import datasets_pb2
from tunesmith_kit.blobs import BlobStore
from tunesmith_registry.data import importing, sources
store = BlobStore.open(sys.argv[1])
digest = store.put_file(Path(sys.argv[2])).digest
before, put = time.perf_counter(), time.process_time()
made = importing.read(store, sources.uploaded(store, digest), datasets_pb2.ImportDatasetRequest())
took = time.perf_counter() - before
own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps({"seconds": took, "rows": made.num_rows,
    "cpu": sum(use.ru_utime + use.ru_stime for use in (own, workers)) - put,
    "rss_mb": (own.ru_maxrss + 2 * workers.ru_maxrss) / 1000}))
"""


def imported(root: Path, file: Path) -> dict[str, Any]:
    """An import in a process of its own, so that its memory is its own."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, str(root / "store"), str(file)], capture_output=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def near_rows_per_s(count: int) -> float:
    """Rows a second of signatures and their comparison."""
    from tunesmith_registry.data import duplicates

    draw = random.Random(7)
    vocabulary = [f"{left}{right}" for left in _WORDS for right in _WORDS]
    texts = [" ".join(draw.choices(vocabulary, k=70)) for _ in range(count)]
    for index in range(0, count - 1, 100):
        texts[index + 1] = texts[index] + " more"
    before = time.perf_counter()
    found = duplicates.near(duplicates.signatures(texts))
    took = time.perf_counter() - before
    assert len(found) >= count // 100 * 0.9, "what is nearly the same was found"
    return count / took


def timed(work: Callable[[], object]) -> float:
    """Seconds of some work."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def copied(source: Path, folder: Path) -> float:
    """Seconds of a plain copy into a new file."""
    to = folder / "copy"
    try:
        return timed(lambda: plain_copy(source, to))
    finally:
        to.unlink()


def transfers(platform: Platform, file: Path, folder: Path, rounds: int) -> Iterator[dict[str, float]]:
    """A round each: seconds and processor seconds of an upload and a download through the gateway, seconds of
    the copies about them."""
    from tunesmith import blobs

    to = folder / "down"
    server, own = psutil.Process(platform.processes["up"].pid), psutil.Process()

    def cpu() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in (server, own))

    with platform.client() as client:
        core, loop = client._core, client._core.loop
        assert loop is not None, "the blocking face has a loop"
        for number in range(rounds):
            with file.open("ab") as changed:
                changed.write(b'{"text": "round %d"}\n' % number)  # content that is not stored yet
            local = loop.run(blobs.inspect(file))
            copies, began = [copied(file, folder)], cpu()
            up = timed(lambda local=local: loop.run(blobs.upload(core, [local])))  # type: ignore[misc]
            uploaded = cpu() - began
            copies.append(copied(file, folder))
            began = cpu()
            down = timed(lambda local=local: loop.run(blobs.download(core, local.sha256, to)))  # type: ignore[misc]
            downloaded = cpu() - began
            to.unlink()
            copies.append(copied(file, folder))
            yield {
                "up": up, "up_copy": sum(copies[:2]) / 2, "up_cpu": uploaded,
                "down": down, "down_copy": sum(copies[1:]) / 2, "down_cpu": downloaded,
            }  # fmt: skip


def _measures(way: str, size: float) -> list[tuple[str, Callable[[dict[str, float]], float]]]:
    return [
        ("mb_per_s", lambda each: size / each[way]),
        ("of_copy", lambda each: each[f"{way}_copy"] / each[way]),
        ("cpu_s_per_gb", lambda each: each[f"{way}_cpu"] / size * 1000),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.registry_import", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--near-rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-import-") as name:
        root, file = Path(name), Path(name) / "rows.jsonl"
        rows(file, options.megabytes)
        size = file.stat().st_size / 1e6
        began = time.process_time()
        copied(file, root)
        copy_cpu = time.process_time() - began
        made = imported(root, file)
        near = near_rows_per_s(options.near_rows)
        (root / "platform").mkdir()
        with embedded(root / "platform") as platform:
            done = list(transfers(platform, file, root, options.rounds))
    found = {
        "copy_cpu_s_per_gb": copy_cpu / size * 1000,
        "copy_mb_per_s": size / median(each["up_copy"] for each in done),
        "import_mb_per_s": size / made["seconds"],
        "import_rows_per_s": made["rows"] / made["seconds"],
        "import_cpu_s_per_gb": made["cpu"] / size * 1000,
        "import_peak_mb": made["rss_mb"],
        "near_duplicate_rows_per_s": near,
        **{
            f"{name}_{unit}": median(value(each) for each in done)
            for name, way in (("upload", "up"), ("download", "down"))
            for unit, value in _measures(way, size)
        },
    }
    for key, value in found.items():
        sys.stdout.write(f"{key:>28} {value:12,.2f}\n")
    sys.stdout.write(json.dumps({key: round(value, 3) for key, value in found.items()}) + "\n")


if __name__ == "__main__":
    main()
