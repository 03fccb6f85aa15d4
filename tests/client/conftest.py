"""A small server and clients of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.small_server import TOKEN, SmallServer
from tunesmith import Client


@pytest.fixture(autouse=True)
def _own_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the profile and the environment of the machine out of the tests."""
    monkeypatch.setenv("TUNESMITH_CONFIG_DIR", str(tmp_path / "config"))
    for name in ("TUNESMITH_ADDRESS", "TUNESMITH_TOKEN", "TUNESMITH_PROJECT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[SmallServer]:
    small = SmallServer()
    yield small
    small.close()


@pytest.fixture
def client(server: SmallServer) -> Iterator[Client]:
    with Client(server.address, TOKEN) as connected:
        yield connected
