"""What `main` starts of governance: its services and background tasks."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tunesmith.api.registry.v1 import (
    cards_pb2,
    cards_pb2_grpc,
    exports_pb2,
    exports_pb2_grpc,
    lineage_pb2,
    lineage_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    stages_pb2,
    stages_pb2_grpc,
    versions_pb2,
    versions_pb2_grpc,
)
from tunesmith.errors import InvalidArgument
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.holds import Holds
from tunesmith_kit.settings import ServiceSettings, setting
from tunesmith_kit.tasks import Tasks
from tunesmith_registry.governance.collecting import Collector
from tunesmith_registry.governance.embedding import Embedder
from tunesmith_registry.governance.encoding import Encoder, find
from tunesmith_registry.governance.index import Indexes
from tunesmith_registry.governance.keys import SigningKey
from tunesmith_registry.governance.proofservice import ExportService, LineageService
from tunesmith_registry.governance.sealing import Sealer
from tunesmith_registry.governance.searchservice import SearchService
from tunesmith_registry.governance.service import CardService, StageService, VersionService

MODULES = (versions_pb2, stages_pb2, cards_pb2, lineage_pb2, search_pb2, exports_pb2)
Registered = list[tuple[Callable[[Any, Any], None], object]]
# Content on its way is younger: the blob store renews what is asked for at half of it.
_SHORTEST_GRACE_HOURS = 1.0


@dataclass(frozen=True)
class GovernanceSettings(ServiceSettings):
    """Settings of what governs and finds models."""

    signing_key: str = setting(
        "", "ed25519 key for receipts, 64 hexadecimal digits; empty: one is made", secret=True
    )
    garbage_grace_hours: float = setting(168.0, "how long content that nothing refers to is kept")
    garbage_interval_hours: float = setting(0.0, "hours between garbage collections; 0: only when asked for")
    encoder: str = setting(
        "", "folder of a sentence encoder for the search; empty: the one of tunesmith[search]; none: without"
    )


@dataclass(frozen=True)
class Governance:
    """What runs: the services for the rpc server, and what must be ended."""

    services: Registered
    embedder: Embedder


async def start(
    settings: GovernanceSettings, db: Database, blobs: BlobStore, holds: Holds, clock: Clock, tasks: Tasks
) -> Governance:
    """Starts the background tasks and makes the services.

    Raises:
        InvalidArgument: the key is none, the grace is too short to be safe, or there is no such encoder.
    """
    grace_hours, interval_hours = settings.garbage_grace_hours, settings.garbage_interval_hours
    if grace_hours < _SHORTEST_GRACE_HOURS:
        raise InvalidArgument(
            "SETTING_INVALID",
            f"content that nothing refers to must be kept {_SHORTEST_GRACE_HOURS:g} h at least",
            field="TUNESMITH_REGISTRY_GARBAGE_GRACE_HOURS",
            value=grace_hours,
            remedy="give a longer time; uploads and outputs under way are safe within it",
        )
    key = await asyncio.to_thread(SigningKey.load, settings.signing_key, settings.data_dir)
    sealer = Sealer(db, key)
    tasks.spawn("sealer", sealer.run)
    collector = Collector(
        db, blobs, holds, clock, timedelta(hours=grace_hours), timedelta(hours=max(interval_hours, 0.1))
    )
    if interval_hours > 0:
        tasks.spawn("garbage", collector.run)
    folder = await asyncio.to_thread(find, settings.encoder)
    encoder = Encoder(folder) if folder is not None else None
    indexes = Indexes(await asyncio.to_thread(lambda: encoder.digest) if encoder is not None else "")
    embedder = Embedder(db, encoder, indexes)
    tasks.spawn("meaning", embedder.run)
    search = SearchService(db, blobs, indexes, embedder)
    services: Registered = [
        (versions_pb2_grpc.add_VersionServiceServicer_to_server, VersionService(db, blobs, clock)),
        (stages_pb2_grpc.add_StageServiceServicer_to_server, StageService(db, clock)),
        (cards_pb2_grpc.add_CardServiceServicer_to_server, CardService(db, clock)),
        (lineage_pb2_grpc.add_LineageServiceServicer_to_server, LineageService(db, blobs, sealer)),
        (search_pb2_grpc.add_SearchServiceServicer_to_server, search),
        (
            exports_pb2_grpc.add_ExportServiceServicer_to_server,
            ExportService(db, blobs, clock, sealer, collector),
        ),
    ]
    return Governance(services, embedder)
