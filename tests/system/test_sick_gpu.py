"""A sick GPU closes its node: the real agent on GPUs played from a file, and the whole platform."""

import json
from pathlib import Path
from typing import Any

from tests.support.platform import Platform, embedded
from tests.support.processes import wait_for
from tunesmith import Client
from tunesmith.api.nodes.v1 import nodes_pb2

READY, CORDONED = nodes_pb2.NODE_STATE_READY, nodes_pb2.NODE_STATE_CORDONED


class Gpus:
    """The file that plays two GPUs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.play({})

    def play(self, second: dict[str, Any]) -> None:
        """Lets the second GPU say something, at once for whoever reads."""
        figures = {"utilization_percent": 97.0, "power_watts": 71.5, "temperature_celsius": 60.0}
        gpus = [{"model": "L4", "memory_bytes": 1 << 30, "figures": figures} for _ in range(2)]
        gpus[1] |= second
        self.path.with_suffix(".new").write_text(json.dumps({"gpus": gpus}))
        self.path.with_suffix(".new").rename(self.path)


def test_a_sick_gpu_closes_its_node_once_until_it_is_sick_anew(tmp_path: Path) -> None:
    gpus = Gpus(tmp_path / "gpus.json")
    env = {
        "TUNESMITH_AGENT_GPUS": f"fake:{gpus.path}",
        "TUNESMITH_AGENT_NODE": "sick",
        "TUNESMITH_AGENT_TELEMETRY_SECONDS": "0.2",
        "TUNESMITH_AGENT_GPU_HOT_SECONDS": "0.5",
        "TUNESMITH_AGENT_STANDBY": "false",
    }
    with embedded(tmp_path, env) as platform, platform.client() as client:
        closes_for(platform, client, gpus)
        curves_are_there(platform, client)


def closes_for(platform: Platform, client: Client, gpus: Gpus) -> None:
    def become(state: int, *faults: str) -> nodes_pb2.Node:
        def look() -> nodes_pb2.Node | None:
            node = client.nodes.get("sick")
            shown = sorted(each.type for each in node.conditions if each.type.startswith("Fault/"))
            return node if node.state == state and shown == sorted(faults) else None

        return wait_for(look, 90, f"state {state} with {faults}")

    become(READY)
    gpus.play({"xids": [79]})
    node = become(CORDONED, "Fault/GPU_XID/1")
    cordoned = next(each for each in node.conditions if each.type == "Cordoned")
    assert cordoned.reason == "GPU_XID"
    assert "fallen off the bus" in cordoned.message
    # The operator is heeded while it goes on in the same words, whatever else changes meanwhile.
    client.nodes.uncordon("sick")
    gpus.play({"xids": [79, 31]})
    wait_for(lambda: "XID 31" in str(become(READY, "Fault/GPU_XID/1").conditions), 90, "the harmless one")
    gpus.play({"xids": [79, 31], "figures": {"temperature_celsius": 99.0}})
    become(CORDONED, "Fault/GPU_HOT/1", "Fault/GPU_XID/1")
    client.nodes.uncordon("sick")
    gpus.play({"xids": [79, 31]})
    become(READY, "Fault/GPU_XID/1")
    gpus.play({"xids": [79, 31], "lost": True})
    become(CORDONED, "Fault/GPU_LOST/1", "Fault/GPU_XID/1")
    shown = platform.run("nodes", "show", "sick")
    assert "the driver lost it" in shown.stdout, shown


def curves_are_there(platform: Platform, client: Client) -> None:
    def stored() -> bool:
        return "gpu1/xid_errors" in client.nodes.series("sick", "gpu*/xid_errors")

    wait_for(stored, 90, "the node's series")
    found = client.nodes.series("sick", "gpu*/power_watts", "cpu/percent")
    assert sorted(found) == ["cpu/percent", "gpu0/power_watts", "gpu1/power_watts"]
    assert set(found["gpu0/power_watts"].values) == {71.5}
    shown = platform.run("nodes", "history", "sick", "gpu0/power_watts", "--since", "10m", "--json")
    (curve,) = json.loads(shown.stdout)
    assert curve["key"] == "gpu0/power_watts"
    assert curve["values"]
