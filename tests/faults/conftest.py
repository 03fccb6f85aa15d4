"""A distributed site for the drills of this package."""

from collections.abc import Iterator

import pytest

from tests.faults.site import Site, running


@pytest.fixture(scope="package")
def distributed_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running("distributed", tmp_path_factory.mktemp("drills")) as site:
        site.platform.load_inputs()
        yield site
