"""Brings the files of a checkpoint back into a folder."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from tunesmith.blobs import OnProgress, download
from tunesmith.connection import Connection
from tunesmith.errors import AlreadyExists, FailedPrecondition
from tunesmith.targets import resolve

_PART = re.compile(r"[^/\\\x00-\x1f]{1,255}")
_MANIFEST = "manifest.json"


async def unpack(
    core: Connection, job: str, step: int | None, folder: Path, on_progress: OnProgress | None = None
) -> Path:
    """Downloads the files of a job's newest checkpoint, or that of a step. The manifest comes last, so a
    folder that has one is whole; one broken off is gone on with, file by file.

    Raises:
        NotFound: the job has no such checkpoint.
        AlreadyExists: the folder holds one.
        FailedPrecondition: what is stored is damaged.
    """
    name = await resolve(core, f"job:{job}" if step is None else f"job:{job}@{step}")
    if await asyncio.to_thread(_is_whole, folder):
        raise AlreadyExists(
            "NAME_TAKEN", "a checkpoint is there already", field="folder", value=folder,
            remedy="give a new folder",
        )  # fmt: skip
    digest, listed = name.rpartition("/")[2], folder / f".{_MANIFEST}"
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    await download(core, digest, listed)
    files = await asyncio.to_thread(_read, listed)
    done, total = 0, sum(size for _, _, size in files)

    def report(now: int, _: int) -> None:
        if on_progress is not None:
            on_progress(done + now, total)

    for path, sha256, size in files:
        target = folder / path
        if not await asyncio.to_thread(_has, target, size):
            await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
            await download(core, sha256, target, report)
        done += size
        report(0, 0)
    await asyncio.to_thread(listed.replace, folder / _MANIFEST)
    return folder


def _is_whole(folder: Path) -> bool:
    return (folder / _MANIFEST).exists()


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _read(manifest: Path) -> list[tuple[str, str, int]]:
    """Returns path, SHA-256 and size of each file. A path that leads elsewhere is no path of a checkpoint."""
    try:
        body: Any = json.loads(manifest.read_bytes())
        files = [(str(f["path"]), str(f["sha256"]), int(f["size_bytes"])) for f in body["files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        files = [("..", "", 0)]
    for path, _, _ in files:
        if any(part in ("", ".", "..") or not _PART.fullmatch(part) for part in path.split("/")):
            raise FailedPrecondition(
                "ARTIFACT_CORRUPT", "this is no manifest of a checkpoint", field="path", value=path,
                remedy="save the checkpoint again",
            )  # fmt: skip
    return files
