"""The side process that makes checkpoints durable: it reads a slot and writes, hashes, syncs and renames.

It is not the trainer: no torch, no GIL of the trainer's, no pickle. The trainer only copies. One request a
line on standard input, one answer a line on standard output. It dies with the trainer.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith_trainer import artifact, slots
from tunesmith_trainer.slots import HEADER_BYTES, Place

STATE = "state.json"
_PR_SET_PDEATHSIG = 1
_NICE = 5
_CHUNK = 8 * 1024 * 1024


def main() -> int:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is meant for the trainer, which then ends our input
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return 1  # the trainer died before it could take us along
    os.nice(_NICE)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
    return 0


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a request asks; what went wrong is told as `error` (errno) and `message`."""
    try:
        with open(request["source"], "rb") as file:  # noqa: PTH123 - /proc/PID/fd/N, not a path of ours
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return perform(request, memory)
    except OSError as error:
        return {"error": error.errno or 0, "message": str(error)}
    except Exception as error:
        return {"error": -1, "message": repr(error)}


def perform(request: Mapping[str, Any], memory: Any) -> dict[str, Any]:
    """Write the checkpoint of a slot, then remove those that are not to be kept."""
    start = time.time()
    at = int(request["at"])
    header = slots.read_header(memory, at, len(memory) - at)
    found = slots.read_record(memory, at, header) if header is not None else None
    if header is None or found is None:
        raise ValueError("the slot of the checkpoint is not whole")
    record, table = found
    first = at + HEADER_BYTES + header.json_bytes
    del record["tensors"]

    def fill(folder: Path) -> None:
        for group in sorted({place.name.partition("/")[0] for place in table} | {"trainable", "optimizer"}):
            write_safetensors(folder / f"{group}.safetensors", group, table, memory, first)
        (folder / STATE).write_bytes(artifact.canonical_json(record))

    target = Path(request["target"])
    made = artifact.write(target, "checkpoint", request["properties"], fill)
    for path in superfluous(target.parent, int(request["keep"]), int(request["keep_best"])):
        shutil.rmtree(path, ignore_errors=True)
    return {"digest": made.digest, "size_bytes": made.size_bytes, "start": start, "end": time.time()}


def write_safetensors(path: Path, group: str, table: list[Place], memory: Any, first: int) -> None:
    """The tensors of one group as a safetensors file, ordered by name: equal states give equal bytes."""
    prefix = f"{group}/"
    places = sorted((item for item in table if item.name.startswith(prefix)), key=lambda item: item.name)
    entries, at = {}, 0
    for place in places:
        name = place.name.removeprefix(prefix)
        offsets = [at, at + place.num_bytes]
        entries[name] = {"dtype": place.dtype, "shape": list(place.shape), "data_offsets": offsets}
        at += place.num_bytes
    head = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    head = head.ljust(-(-len(head) // 8) * 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for place in places:
            begin, end = first + place.start, first + place.start + place.num_bytes
            for part in range(begin, end, _CHUNK):
                file.write(memory[part : min(part + _CHUNK, end)])


def own(folder: Path) -> list[tuple[int, Path]]:
    """The complete checkpoints of a folder with their steps, oldest first."""
    names = ((re.fullmatch(r"step-(\d{8,})", item.name), item) for item in folder.iterdir())
    return sorted(
        (int(match[1]), item) for match, item in names if match and (item / artifact.MANIFEST).exists()
    )


def superfluous(folder: Path, keep: int, keep_best: int) -> list[Path]:
    """The checkpoints beyond the newest, `keep` before it, and the `keep_best` that were judged best."""
    found = own(folder)
    old = [path for _, path in found[: -1 - keep]]
    if not keep_best:
        return old
    ranked = sorted((figure, step, path) for step, path in found if (figure := judged(path)) is not None)
    best = {path for _, _, path in ranked[:keep_best]}
    return [path for path in old if path not in best]


def judged(path: Path) -> float | None:
    """What a checkpoint made right after an evaluation is compared by, smaller is better; None for others."""
    try:
        properties = json.loads((path / artifact.MANIFEST).read_bytes())["properties"]
        return float(properties["judged"] if "judged" in properties else properties["eval_loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


if __name__ == "__main__":
    sys.exit(main())
