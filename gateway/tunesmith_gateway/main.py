"""Wires the gateway."""

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from tunesmith.api.gateway.v1 import fleet_pb2, fleet_pb2_grpc, quotes_pb2, quotes_pb2_grpc
from tunesmith.api.jobs.v1 import external_pb2
from tunesmith.api.metrics.v1 import alerts_pb2, metrics_pb2, records_pb2, trace_pb2
from tunesmith.api.registry.v1 import (
    blobs_pb2,
    cards_pb2,
    chat_pb2,
    datasets_pb2,
    derivations_pb2,
    evaluations_pb2,
    exports_pb2,
    lineage_pb2,
    models_pb2,
    prompts_pb2,
    search_pb2,
    stages_pb2,
    statistics_pb2,
    versions_pb2,
)
from tunesmith.errors import InvalidArgument
from tunesmith_gateway import app, live
from tunesmith_gateway.auth import Tokens, authenticator
from tunesmith_gateway.proxy import SERVED_BY, Backends, Forwarder
from tunesmith_gateway.quotes import QuoteService
from tunesmith_gateway.rest import Rest
from tunesmith_gateway.tables import METADATA
from tunesmith_gateway.views import FleetService
from tunesmith_kit import migrate, rpc
from tunesmith_kit.bus import Bus
from tunesmith_kit.clock import SystemClock
from tunesmith_kit.db import Database
from tunesmith_kit.health import HttpServer
from tunesmith_kit.host import Running, ServiceSpec
from tunesmith_kit.settings import ServiceSettings, setting
from tunesmith_kit.spans import SpanPublisher
from tunesmith_kit.telemetry import Telemetry

log = logging.getLogger(__name__)
_FLEET = fleet_pb2.DESCRIPTOR.services_by_name["FleetService"].full_name
_QUOTES = quotes_pb2.DESCRIPTOR.services_by_name["QuoteService"].full_name
SERVICES = (*SERVED_BY, _FLEET, _QUOTES)
_TOKEN_ROLES = ("admin", "node", "viewer", "developer")
# Imported so that their rpcs are known.
CONTRACTS = (
    alerts_pb2,
    external_pb2,
    records_pb2,
    metrics_pb2,
    trace_pb2,
    blobs_pb2,
    chat_pb2,
    datasets_pb2,
    derivations_pb2,
    prompts_pb2,
    statistics_pb2,
    evaluations_pb2,
    models_pb2,
    cards_pb2,
    exports_pb2,
    lineage_pb2,
    search_pb2,
    stages_pb2,
    versions_pb2,
)


@dataclass(frozen=True)
class GatewaySettings(ServiceSettings):
    """Settings of the gateway."""

    web_port: int = setting(0, "port of REST and the page; 0: any free one")
    jobs_address: str = setting("127.0.0.1:7471", "gRPC address of the jobs service")
    registry_address: str = setting("127.0.0.1:7472", "gRPC address of the registry service")
    metrics_address: str = setting("127.0.0.1:7473", "gRPC address of the metrics service")
    admin_token: str = setting("", "token of role admin; empty: one is made at the first start", secret=True)
    node_token: str = setting("", "token of role node for agents; empty: no agent is let in", secret=True)
    viewer_token: str = setting("", "token of role viewer; empty: none", secret=True)
    developer_token: str = setting("", "token of role developer; empty: none", secret=True)
    allowed_hosts: str = setting("", "further names of this server, separated by commas")


async def build(settings: GatewaySettings, telemetry: Telemetry) -> Running:
    """Starts the gateway; what had started is stopped when a later part fails."""
    url, clock = settings.database("gateway"), SystemClock()
    await asyncio.to_thread(migrate.upgrade, url, "gateway", METADATA)
    async with AsyncExitStack() as stack:
        db = Database(url, "gateway")
        stack.push_async_callback(db.close)
        tokens = Tokens(db, clock)
        await _ensure_tokens(settings, tokens)
        authenticate = authenticator(tokens)

        # It has no bus for its work: it connects once there is a span to tell of, or else does without.
        wire = partial(
            Bus.connect, settings.nats_url, settings.nats_token, "service/gateway", ensure_streams=False
        )
        spans = SpanPublisher(telemetry.recorder, "gateway", wire)
        stack.push_async_callback(spans.stop)
        spans.start()
        backends = Backends(_addresses(settings), settings.internal_token)
        stack.push_async_callback(backends.close)
        server = rpc.RpcServer(
            telemetry,
            authenticate,
            [
                (fleet_pb2_grpc.add_FleetServiceServicer_to_server, FleetService(backends)),
                (quotes_pb2_grpc.add_QuoteServiceServicer_to_server, QuoteService(backends)),
            ],
            generic=[Forwarder(backends, {live.PATH: live.LiveSeries(backends).handler()})],
            names=SERVICES,
        )
        stack.push_async_callback(server.stop)
        address = await server.start(settings.host, settings.port)

        own = rpc.connect(address.replace("0.0.0.0", "127.0.0.1"))
        stack.push_async_callback(own.close)
        further = [name.strip() for name in settings.allowed_hosts.split(",") if name.strip()]
        hosts = ["localhost", "127.0.0.1", "::1", settings.host, *further]
        web = HttpServer(
            app.build(Rest(own, SERVICES, telemetry), SERVICES, authenticate, hosts, backends.ready)
        )
        stack.push_async_callback(web.stop)
        http_address = await web.start(settings.host, settings.web_port)
        return Running(address, stack.pop_all().aclose, backends.ready, {"http_address": http_address})


def _addresses(settings: GatewaySettings) -> dict[str, str]:
    return {
        "jobs": settings.jobs_address,
        "registry": settings.registry_address,
        "metrics": settings.metrics_address,
    }


async def _ensure_tokens(settings: GatewaySettings, tokens: Tokens) -> None:
    given: dict[str, str] = {role: getattr(settings, f"{role}_token") for role in _TOKEN_ROLES}
    seen: dict[str, str] = {}
    for role, token in given.items():
        if token and seen.setdefault(token, role) != role:
            raise InvalidArgument(
                "SETTING_INVALID",
                f"the roles {seen[token]} and {role} have the same token",
                field=f"TUNESMITH_GATEWAY_{role.upper()}_TOKEN",
                remedy="give each role a token of its own",
            )
    for role, token in given.items():
        if token:
            await tokens.ensure(role, role, token)
        elif role != "admin":  # the admin's may have been made here
            await tokens.end(role)
    made = await tokens.first_admin()
    if made:
        # The one time a secret is shown: there is no other way to hand the first one over.
        print(f"admin token (shown once): {made}", flush=True)  # noqa: T201


service = ServiceSpec("gateway", GatewaySettings, build)
