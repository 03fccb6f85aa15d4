"""Disks under faults: a small one that can be filled, and files that are damaged."""

import contextlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.faults.site import Site
from tests.support import mounts

_SMALL_DISK_MIB = 400
_DAMAGES = ("flip", "truncate", "torn", "missing")


@contextlib.contextmanager
def small_disk(site_root: Path, mode: str) -> Iterator[None]:
    """Puts what a full disk is to hit on a small file system, where the machine lets us: all data, or one
    node's."""
    if mounts.why_no_mounts():
        yield
        return
    with mounts.small_disk(site_root / _small_disk(mode), _SMALL_DISK_MIB):
        yield


def why_no_small_disk(site: Site) -> str:
    """Why no disk of a site can be filled; empty if one can."""
    folder = site.platform.root / _small_disk(site.mode)
    return mounts.why_no_mounts() or ("" if folder.is_mount() else f"{folder} is no file system of its own")


def _small_disk(mode: str) -> str:
    return "data" if mode == "embedded" else "data/node-a"


def full(site: Site) -> contextlib.AbstractContextManager[None]:
    """Fills the small disk of a site to the last byte, and frees it again."""
    return mounts.full(site.platform.root / _small_disk(site.mode))


def remove(folder: Path) -> None:
    """Removes a folder with all that lies in it."""
    shutil.rmtree(folder, ignore_errors=True)


def damage(folders: list[Path], rng: random.Random) -> str:
    """Damages one file of a folder. Files may be links into the blob store: the copy is damaged, not that."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    if not files:
        return ""
    path, how = rng.choice(files), rng.choice(_DAMAGES)
    data = bytearray(path.read_bytes())
    path.unlink()
    at = rng.randrange(len(data)) if data else 0
    if how == "flip" and data:
        data[at] ^= 1 << rng.randrange(8)
    elif how == "truncate":
        del data[at:]
    elif how == "torn":
        data[at:] = bytes(len(data) - at)
    if how != "missing":
        path.write_bytes(data)
    return f"{how} {path.parent.name}/{path.name}"
