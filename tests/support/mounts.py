"""File systems of a test's own: a small one that can be filled, and one whose power can be cut."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MIB = 1024 * 1024


def why_no_mounts() -> str:
    """Why this machine lets us mount nothing; empty if it does."""
    if os.geteuid() != 0:
        return "mounting needs root"
    return "" if shutil.which("mount") else "there is no mount command"


def why_no_images() -> str:
    """Why no image can be mounted here; empty if one can."""
    if (why := why_no_mounts()) or not Path("/dev/loop-control").exists():
        return why or "there are no loop devices"
    return "" if shutil.which("mkfs.ext4") else "there is no mkfs.ext4"


@contextmanager
def small_disk(folder: Path, num_mib: int) -> Iterator[None]:
    """Mounts a memory file system of a size on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_mib}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fills the file system of a folder to the last byte, and frees it again."""
    ballast = folder / ".ballast"
    try:
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            for size in (_MIB, 4096, 1):
                with suppress(OSError):
                    while file.write(b"\1" * size):
                        pass
        yield
    finally:
        ballast.unlink(missing_ok=True)


def make_image(path: Path, num_mib: int = 64) -> None:
    """Makes a file that holds an empty ext4 file system."""
    with path.open("wb") as file:
        file.truncate(num_mib * _MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(path)], check=True)


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[None]:
    """Mounts an image. A copy of the file taken meanwhile is what a power cut would have left."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
