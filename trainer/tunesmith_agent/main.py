"""Wires the agent."""

import math
import os
import socket
from dataclasses import dataclass

from tunesmith.api.metrics.v1 import metrics_pb2_grpc
from tunesmith.api.nodes.v1 import nodes_pb2_grpc
from tunesmith.errors import InvalidArgument
from tunesmith_agent.agent import Agent, NodeFacts, default_node_id
from tunesmith_agent.attempt import Tools
from tunesmith_agent.chat import ChatHost
from tunesmith_agent.chatworkers import ChatLimits
from tunesmith_agent.folder import Notes, RunFolder
from tunesmith_agent.gpus import find_gpus
from tunesmith_agent.health import Health, Limits
from tunesmith_agent.host import Host
from tunesmith_agent.inputs import InputCache
from tunesmith_agent.process import ForkServer
from tunesmith_agent.redaction import Redactor
from tunesmith_agent.reporter import Reporter
from tunesmith_agent.shipper import Shipper
from tunesmith_agent.snapshots import SnapshotMemory
from tunesmith_agent.telemetry import Sampler
from tunesmith_agent.trainer_status import step_of
from tunesmith_kit import rpc
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.bus import Bus
from tunesmith_kit.holds import Holds
from tunesmith_kit.host import Running, ServiceSpec
from tunesmith_kit.lease import Lease, lease_key
from tunesmith_kit.settings import ServiceSettings, setting
from tunesmith_kit.telemetry import Telemetry, setup


@dataclass(frozen=True)
class AgentSettings(ServiceSettings):
    """Settings of the agent."""

    gateway_address: str = setting("127.0.0.1:7461", "gRPC address of the gateway")
    token: str = setting("", "token of role node for the gateway", secret=True)
    node: str = setting("", "name of this node; empty: the machine's name")
    address: str = setting(
        "", "host name or address at which other nodes reach this one; empty: the machine's name"
    )
    labels: str = setting("", "labels of this node, as key=value separated by commas")
    slots: int = setting(1, "attempts this node runs at once")
    standby: bool = setting(True, "keep a process with the imports done from which trainers are forked")
    snapshots: str = setting(
        "/dev/shm",
        "folder in memory for the trainers' snapshots; empty: none, and a killed trainer redoes more",
    )
    gpus: str = setting("nvml", "where GPUs are read: nvml, none, or fake:FILE for tests")
    telemetry_seconds: float = setting(2.0, "seconds between two samples of the node, 0.1 or more")
    gpu_hot_celsius: float = setting(95.0, "temperature at which a GPU is too hot")
    gpu_hot_seconds: float = setting(60.0, "seconds a GPU must be too hot before its node is cordoned")
    disk_free_gb: float = setting(
        1.0, "gigabytes free where runs lie below which the node tells of a full disk"
    )

    judges: str = setting(
        "",
        "JSON file that lists the endpoints evaluations on this node may ask as judges, each with `base_url` "
        "and `key_file` or `key_env`; empty: none",
    )

    gpu_peak_tflops: float = setting(
        0.0,
        "dense peak of one GPU of this node in TFLOP/s at the precision its jobs train in, to tell the share "
        "that they use; 0: by the GPU's name, where it is known",
    )

    chat_models: int = setting(2, "models kept loaded for chat; 0: this node does not chat")
    chat_answers: int = setting(2, "answers this node gives at once; more wait")
    chat_threads: int = setting(0, "threads a chat process computes with; 0: half of the processors")
    chat_idle_minutes: float = setting(10.0, "minutes without a question after which a model is unloaded")
    chat_gpu: int = setting(-1, "GPU that chat runs on; -1: the processor, so that training keeps its GPUs")

    def chat_limits(self) -> ChatLimits:
        """Returns what answers may take of the node; `InvalidArgument` for a number that is none."""
        for name, least in (("chat_models", 0), ("chat_answers", 1), ("chat_threads", 0)):
            if getattr(self, name) < least:
                raise InvalidArgument(
                    "SETTING_INVALID",
                    f"it must be at least {least}",
                    field=f"TUNESMITH_AGENT_{name.upper()}",
                    value=getattr(self, name),
                    remedy="correct the value or unset the variable to use the default",
                )
        idle = self.chat_idle_minutes * 60
        return ChatLimits(self.chat_models, self.chat_answers, self.chat_threads, idle, self.chat_gpu)

    def peak(self) -> float:
        """Returns the peak of a GPU; `InvalidArgument` for a number that is none."""
        if not 0 <= self.gpu_peak_tflops < math.inf:
            raise InvalidArgument(
                "SETTING_INVALID",
                "a peak is 0 or more",
                field="TUNESMITH_AGENT_GPU_PEAK_TFLOPS",
                value=str(self.gpu_peak_tflops),
                remedy="give TFLOP/s as the data sheet has them, without sparsity, or 0",
            )
        return self.gpu_peak_tflops

    def limits(self) -> Limits:
        """Returns when heat and a full disk become faults; `InvalidArgument` for a span that is none."""
        if not 0.1 <= self.telemetry_seconds <= 60:
            raise InvalidArgument(
                "SETTING_INVALID",
                "samples are taken every 0.1 to 60 seconds",
                field="TUNESMITH_AGENT_TELEMETRY_SECONDS",
                value=str(self.telemetry_seconds),
                remedy="say 1 or 2",
            )
        return Limits(self.gpu_hot_celsius, self.gpu_hot_seconds, self.disk_free_gb * 1e9)


def _labels(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    wrong = next((key for key, equals, _ in pairs if not equals), None)
    if wrong is not None:
        raise InvalidArgument(
            "SETTING_INVALID", "a label has no value", field="TUNESMITH_AGENT_LABELS", value=wrong,
            remedy="write labels as key=value, separated by commas",
        )  # fmt: skip
    return {key.strip(): value.strip() for key, _, value in pairs}


async def build(settings: AgentSettings, telemetry: Telemetry) -> Running:
    """Starts the agent: bus, lease, commands, adopted attempts."""
    node_id = settings.node or default_node_id()
    metadata = (("authorization", f"Bearer {settings.token}"),)
    channel = rpc.connect(settings.gateway_address)
    nodes = nodes_pb2_grpc.NodeServiceStub(channel)
    metrics = metrics_pb2_grpc.MetricsServiceStub(channel)
    bus = await Bus.connect(settings.nats_url, settings.nats_token, f"node/{node_id}", ensure_streams=False)
    spans = telemetry.publish(bus)
    blobs, holds = BlobStore.open(settings.blobs()), Holds.open(settings.blobs())
    redactor = Redactor.of(os.environ, settings)

    def shipper(notes: Notes, folder: RunFolder, rank: int) -> Shipper:
        # Rank 0 alone writes metrics; the others have a log.
        spool = folder.spool if rank == 0 else folder.spool / f"rank-{rank}"
        log = folder.log(rank)
        return Shipper(
            notes, spool, log, rank, bus, metrics, metadata, redactor, lambda: step_of(folder), blobs, holds
        )

    home = settings.data_dir.absolute() / "nodes" / node_id
    tools = Tools(
        node=node_id,
        blobs=blobs,
        inputs=InputCache(home / "cache", blobs),
        snapshots=SnapshotMemory(settings.snapshots, home),
        reporter=Reporter(node_id, nodes, metadata, redactor),
        standby=ForkServer(settings.standby),
        telemetry=telemetry,
        trainer_telemetry=setup(
            "trainer",
            otlp_endpoint=settings.otlp_endpoint,
            log_format=settings.log_format,
            log_level=settings.log_level,
            recorder=telemetry.recorder,
        ),
        shipper=shipper,
        judges=settings.judges,
        gpu_peak_tflops=settings.peak(),
    )
    address = settings.address or socket.gethostname()
    facts = NodeFacts(node_id, address, _labels(settings.labels), settings.slots)
    gpus, runs = find_gpus(settings.gpus), home / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    sampler = Sampler(node_id, bus, gpus, Host(runs), Health(settings.limits()), settings.telemetry_seconds)
    agent = Agent(facts, runs, bus, nodes, metadata, tools, gpus, sampler)
    lease = Lease(bus, lease_key("node", node_id), f"node/{node_id}")
    lease.start()
    await agent.start()
    chat = ChatHost(node_id, bus, tools.inputs, home, settings.chat_limits())
    await chat.start()

    async def stop() -> None:
        await chat.stop()
        await agent.stop()
        # Not released: trainers go on without us, and the next agent has the lease's time to come back.
        lease.stop()
        await spans.stop()
        await bus.close()
        await channel.close()
        tools.trainer_telemetry.shutdown()

    async def ready() -> str:
        return "" if bus.connected else "waiting for the bus"

    return Running(settings.gateway_address, stop, ready, {"node": node_id})


service = ServiceSpec("agent", AgentSettings, build)
