"""A distributed site for the campaign and the drills of this package."""

from collections.abc import Iterator

import pytest

from tests.faults.disks import small_disk
from tests.faults.site import Site, running


@pytest.fixture(scope="package")
def distributed_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("drills")
    with small_disk(root, "distributed"), running("distributed", root) as site:
        site.platform.load_inputs()
        yield site
