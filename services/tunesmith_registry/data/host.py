"""What the data part of the registry runs: its rpcs, and what it does in the background."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.api.registry.v1 import (
    datasets_pb2_grpc,
    derivations_pb2_grpc,
    prompts_pb2_grpc,
    statistics_pb2_grpc,
)
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.holds import Holds
from tunesmith_kit.settings import ServiceSettings, setting
from tunesmith_kit.tasks import Tasks
from tunesmith_kit.uploads import Uploads
from tunesmith_registry.data import wire
from tunesmith_registry.data.blobservice import BlobService
from tunesmith_registry.data.importing import Limits
from tunesmith_registry.data.preview import Previews
from tunesmith_registry.data.promptservice import PromptService
from tunesmith_registry.data.rendering import Renderers
from tunesmith_registry.data.service import DatasetService, DerivationService
from tunesmith_registry.data.sources import Doors
from tunesmith_registry.data.statistics import StatisticsService

log = logging.getLogger(__name__)
_SWEEP_SECONDS = 600.0


@dataclass(frozen=True)
class DataSettings(ServiceSettings):
    """Settings of imports and uploads."""

    import_roots: str = setting("", "folders that imports by path may read, separated by commas; empty: none")
    import_urls: str = setting(
        "", "hosts, or beginnings of addresses, that imports may fetch from, separated by commas; empty: none"
    )
    hub_url: str = setting("https://huggingface.co", "hub that imports read data sets from; empty: none")
    import_max_bytes: int = setting(1 << 40, "largest source of an import in bytes, after decompression")
    import_workers: int = setting(
        2, "processes that check the rows of a large import; 0: none beside the service"
    )
    max_upload_bytes: int = setting(1 << 40, "largest upload in bytes")
    upload_ttl_hours: float = setting(
        48.0, "hours after which an upload that nobody went on with is forgotten"
    )


class DataHost:
    """The data part of a running registry. `services` are what the rpc server registers."""

    def __init__(
        self, settings: DataSettings, db: Database, blobs: BlobStore, holds: Holds, clock: Clock
    ) -> None:
        self._uploads = Uploads(blobs, settings.max_upload_bytes, settings.upload_ttl_hours * 3600)
        self._renderers = Renderers(blobs, settings.data_dir / "registry-cache")
        previews = Previews(db, blobs, self._renderers)
        limits = Limits(settings.import_max_bytes, settings.import_workers)
        self._statistics = StatisticsService(db, blobs, clock, self._renderers)
        datasets = DatasetService(db, blobs, clock, _doors(settings), limits, previews)
        self.services: list[tuple[Callable[[Any, Any], None], object]] = [
            (datasets_pb2_grpc.add_DatasetServiceServicer_to_server, datasets),
            (
                derivations_pb2_grpc.add_DerivationServiceServicer_to_server,
                DerivationService(db, blobs, clock),
            ),
            (statistics_pb2_grpc.add_StatisticsServiceServicer_to_server, self._statistics),
            (prompts_pb2_grpc.add_PromptServiceServicer_to_server, PromptService(db, blobs, clock, previews)),
            (wire.add_to_server, BlobService(blobs, self._uploads, holds)),
        ]

    def start(self, tasks: Tasks) -> None:
        """Begins the work in the background."""
        tasks.spawn("upload-sweep", self._sweep)

    async def _sweep(self) -> None:
        while True:
            count = await asyncio.to_thread(self._uploads.sweep)
            if count:
                log.info("forgot what nobody went on with", extra={"count": count})
            await asyncio.to_thread(self._renderers.cool)
            await asyncio.sleep(_SWEEP_SECONDS)

    async def stop(self) -> None:
        """Ends what still runs."""
        await self._statistics.close()
        await asyncio.to_thread(self._renderers.close)


def _doors(settings: DataSettings) -> Doors:
    return Doors(
        roots=tuple(Path(root) for root in _listed(settings.import_roots)),
        urls=tuple(_listed(settings.import_urls)),
        hub_url=settings.hub_url,
        max_bytes=settings.import_max_bytes,
    )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
