"""The metrics service with alerts, and what the jobs service would say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.metrics.support import JOB, PARENT, TIME_US, batch, send
from tests.support.bus import connected, running_nats
from tests.support.stubs import running_service, stub
from tests.support.wait import until_async
from tunesmith.api.jobs.v1 import events_pb2 as job_events_pb2
from tunesmith.api.jobs.v1 import spec_pb2, state_pb2
from tunesmith.api.metrics.v1 import alerts_pb2, alerts_pb2_grpc
from tunesmith.api.metrics.v1 import rules_pb2 as pb
from tunesmith.api.nodes.v1 import events_pb2 as node_events_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_kit import subjects
from tunesmith_kit.bus import Bus
from tunesmith_kit.ids import new_ulid
from tunesmith_kit.nats_server import EmbeddedNats

PROJECT = "projects/default"
CHANNEL = f"{PROJECT}/alertChannels/hook"


def high_loss(**fields: Any) -> pb.AlertRule:
    """A rule: train/loss above 2."""
    said = pb.MetricThreshold(key="train/loss", comparison=pb.COMPARISON_ABOVE, value=2)
    return pb.AlertRule(condition=pb.AlertCondition(threshold=said), **fields)


@dataclass
class Alerting:
    """The running service, its clients, and a bus to feed it."""

    bus: Bus
    alerts: "alerts_pb2_grpc.AlertServiceAsyncStub"
    revision: int = 0

    async def rule(self, rule_id: str, body: pb.AlertRule) -> pb.AlertRule:
        """Makes a rule."""
        request = alerts_pb2.CreateAlertRuleRequest(parent=PROJECT, rule_id=rule_id, rule=body)
        return (await self.alerts.CreateAlertRule(request)).rule

    async def channel(self, url: str, **fields: Any) -> pb.AlertChannel:
        """Makes the channel `hook` that leads to a webhook."""
        target = pb.WebhookTarget(url=url, **fields)
        channel = pb.AlertChannel(name=CHANNEL, webhook=target, send_resolved=True)
        return (await self.alerts.SetAlertChannel(alerts_pb2.SetAlertChannelRequest(channel=channel))).channel

    async def found(self, **fields: Any) -> list[pb.Alert]:
        """Alerts, oldest first."""
        answer = await self.alerts.ListAlerts(alerts_pb2.ListAlertsRequest(parent=PROJECT, **fields))
        return list(answer.alerts)[::-1]

    async def until(self, stand: list[int], **fields: Any) -> list[pb.Alert]:
        """Waits until alerts stand as said, in any order, and returns them, oldest first."""
        seen: list[pb.Alert] = []

        async def there() -> bool:
            seen[:] = await self.found(**fields)
            return sorted(alert.state for alert in seen) == sorted(stand)

        await until_async(there, f"alerts {stand}")
        return seen

    async def losses(self, first_seq: int, *values: float, job_id: str = JOB, epoch: int = 1) -> None:
        """Sends points of train/loss whose steps are their sequence numbers."""
        await send(self.bus, batch(first_seq, [[value] for value in values], job_id=job_id, epoch=epoch))

    async def job(self, kind: str, event: Any, *, time_us: int = TIME_US, job_id: str = JOB) -> None:
        """Says something about a job as the jobs service does."""
        self.revision += 1
        envelope = job_events_pb2.JobEvent(
            event_id=new_ulid(),
            revision=self.revision,
            job=f"{PROJECT}/jobs/{job_id}",
            display_name=f"name-{job_id[-4:]}",
        )
        envelope.time.FromMicroseconds(time_us)
        getattr(envelope, kind).CopyFrom(event)
        subject = subjects.job_event("default", job_id, kind)
        await self.bus.publish(subject, envelope.SerializeToString(), envelope.event_id)

    async def created(self, *, job_id: str = JOB, experiment: str = "", **labels: str) -> None:
        """A job was accepted."""
        spec = spec_pb2.JobSpec(experiment=experiment, labels=labels)
        await self.job("created", job_events_pb2.JobCreated(spec=spec), job_id=job_id)

    async def state(self, name: str, *, time_us: int = TIME_US, job_id: str = JOB) -> None:
        """A job went to another state."""
        state = state_pb2.JobState.Value(f"JOB_STATE_{name}")
        await self.job(
            "state_changed", job_events_pb2.JobStateChanged(to_state=state), time_us=time_us, job_id=job_id
        )

    async def node(self, name: str, state: str, *, time_us: int = TIME_US) -> None:
        """A node went to another state."""
        self.revision += 1
        envelope = node_events_pb2.NodeEvent(
            event_id=new_ulid(), revision=self.revision, node=f"nodes/{name}"
        )
        envelope.time.FromMicroseconds(time_us)
        envelope.state_changed.to_state = nodes_pb2.NodeState.Value(f"NODE_STATE_{state}")
        subject = subjects.node_event(name, "state_changed")
        await self.bus.publish(subject, envelope.SerializeToString(), envelope.event_id)


@asynccontextmanager
async def alerting(
    folder: Path, server: EmbeddedNats | None = None, **settings: object
) -> AsyncIterator[Alerting]:
    """The service on its own nats-server, or on one that runs already; webhooks may go to this machine."""
    if server is None:
        async with running_nats(folder) as own, alerting(folder, own, **settings) as found:
            yield found
        return
    given: dict[str, object] = {"webhook_private": True, **settings}
    async with (
        running_service("metrics", server, folder, **given) as running,
        connected(server, "agent") as bus,
        stub(alerts_pb2_grpc.AlertServiceStub, running) as alerts,
    ):
        yield Alerting(bus, alerts)


__all__ = ["CHANNEL", "JOB", "PARENT", "PROJECT", "TIME_US", "Alerting", "alerting", "high_loss"]
