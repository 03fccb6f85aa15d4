"""Holds on content, in a folder and in an object store."""

from pathlib import Path

import pytest

from tunesmith.errors import InvalidArgument
from tunesmith_kit.holds import Holds

ONE, OTHER = "1" * 64, "2" * 64


@pytest.fixture(params=["folder", "objects"])
def holds(request: pytest.FixtureRequest, tmp_path: Path) -> Holds:
    where = str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}/prefix"
    return Holds.open(where)


def test_content_is_held_until_its_last_owner_is_released(holds: Holds) -> None:
    assert holds.held() == set()
    for owner, digest in (("a", ONE), ("b", ONE), ("b", OTHER), ("b", OTHER)):
        holds.hold(owner, digest)
    assert holds.held() == {ONE, OTHER}
    holds.release("b")
    assert holds.held() == {ONE}
    for _ in range(2):
        holds.release("a")
    assert holds.held() == set()


def test_owners_and_digests_are_names_and_no_paths(holds: Holds) -> None:
    for owner, digest in (("..", ONE), ("a/b", ONE), ("", ONE), ("A", ONE), ("a", "../x"), ("a", "1" * 63)):
        with pytest.raises(InvalidArgument):
            holds.hold(owner, digest)
    with pytest.raises(InvalidArgument):
        holds.release("../sha256")
    assert holds.held() == set()
