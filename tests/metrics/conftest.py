"""A service with a few points, for tests that only ask."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.metrics.support import Metrics, batch, losses, running_metrics, send
from tests.support.wait import until_async


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Metrics]:
    """The metrics service with a curve `train/loss` of ten points."""
    async with running_metrics(tmp_path_factory.mktemp("metrics")) as found:
        await send(found.bus, batch(1, losses(1, 10)))

        async def there() -> bool:
            return (await found.watermark()).metrics_seq == 10

        await until_async(there, "ten records")
        yield found
