"""A shipper says that all is stored only when it is, whatever the bus does meanwhile."""

import struct
import zlib
from pathlib import Path

from tests.support.bus import connected, running_nats
from tests.support.wait import until
from tunesmith.api.metrics.v1 import metrics_pb2_grpc
from tunesmith_agent.folder import Notes
from tunesmith_agent.shipper import Shipper
from tunesmith_agent.spool import MAGIC
from tunesmith_kit import rpc


def write_spool(folder: Path) -> None:
    """One key and one step record, as a trainer leaves them."""
    folder.mkdir()
    parts = [
        struct.pack("<BH", 1, 0) + b"train/loss",
        struct.pack("<BQqqHHd", 2, 1, 1, 0, 1, 0, 0.5),
    ]
    records = b"".join(struct.pack("<II", len(part) + 4, zlib.crc32(part)) + part for part in parts)
    (folder / "metrics-00000001.bin").write_bytes(MAGIC + records)


async def test_what_an_outage_of_the_bus_kept_in_the_folder_is_not_taken_for_stored(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    write_spool(spool)
    async with running_nats(tmp_path) as server, connected(server, "node/n1") as bus:
        metrics = metrics_pb2_grpc.MetricsServiceStub(rpc.connect("127.0.0.1:9"))  # nobody answers there
        notes = Notes("projects/default/jobs/01k0", 1, "n1")
        shipper = Shipper(notes, spool, tmp_path / "log", 0, bus, metrics, ())
        await shipper.start()
        await server.kill()
        await until(lambda: not bus.connected, "the loss of the bus is noticed")
        assert not await shipper.drained(0.3), "nothing was read, so nothing can be known to be stored"
        await server.start()
        await until(lambda: bus.connected, "the bus is back")
        assert not await shipper.drained(0.3), "sent, but nobody stored it"
        assert shipper.backlog_bytes() > 0
        await shipper.stop()
