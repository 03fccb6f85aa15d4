"""The memory of snapshots is given back."""

import os
import time
from pathlib import Path

from tunesmith_agent.snapshots import SnapshotMemory


def age(path: Path, seconds: float) -> None:
    """Makes a folder and what lies in it look old."""
    for item in [*path.iterdir(), path]:
        os.utime(item, (time.time() - seconds,) * 2)


def test_only_what_nobody_uses_is_dropped(tmp_path: Path) -> None:
    memory = SnapshotMemory(str(tmp_path), Path("/srv/n1"))
    folders = {name: memory.folder(name) for name in ("running", "fresh", "left")}
    for folder in folders.values():
        assert folder is not None
        (folder / "1.slots").write_bytes(b"x")
    for name in ("running", "left"):
        age(folders[name] or tmp_path, 3600)
    memory.tidy({"running"})
    assert {name for name, folder in folders.items() if folder and folder.exists()} == {"running", "fresh"}
    memory.drop("running")
    assert not (folders["running"] or tmp_path).exists()
    memory.drop("fresh")
    assert not list(tmp_path.iterdir()), "the node's own folder goes with the last job's"


def test_two_nodes_of_one_machine_do_not_meet(tmp_path: Path) -> None:
    one, two = (SnapshotMemory(str(tmp_path), Path(home)).folder("job") for home in ("/a", "/b"))
    assert one != two


def test_without_such_memory_there_are_no_snapshots(tmp_path: Path) -> None:
    assert SnapshotMemory("", tmp_path).folder("job") is None
    assert SnapshotMemory(str(tmp_path / "missing"), tmp_path).folder("job") is None
