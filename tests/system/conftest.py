"""The platforms: one embedded and one distributed for all tests of a session."""

from collections.abc import Iterator

import pytest

from tests.support import postgres
from tests.support.platform import Distributed, Platform, embedded


@pytest.fixture(scope="session")
def embedded_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with embedded(tmp_path_factory.mktemp("embedded")) as platform:
        platform.load_inputs()
        yield platform


@pytest.fixture(scope="session")
def distributed_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    root = tmp_path_factory.mktemp("distributed")
    with postgres.running() as server, Distributed(root, server).run() as platform:
        platform.load_inputs()
        yield platform


@pytest.fixture(params=["embedded", pytest.param("distributed", marks=pytest.mark.distributed)])
def platform(request: pytest.FixtureRequest) -> Platform:
    """The same test on both forms of the platform."""
    found: Platform = request.getfixturevalue(f"{request.param}_platform")
    return found
