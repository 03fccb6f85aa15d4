"""The small HTTP face of a service: /healthz (alive), /readyz (can serve) and /metrics (Prometheus)."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from typing import Any

import uvicorn
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tunesmith.errors import Unavailable
from tunesmith_kit.telemetry import REGISTRY

log = logging.getLogger(__name__)


def routes(ready: Callable[[], Awaitable[str]]) -> list[Route]:
    """Returns the three routes. `ready` returns what is missing, or nothing."""

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        missing = await ready()
        return PlainTextResponse(missing + "\n" if missing else "ok\n", status_code=503 if missing else 200)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Any:
        """Leaves signals to the host: uvicorn would end the process."""
        yield


class HttpServer:
    """An ASGI application on a port, inside the service's event loop."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> str:
        """Listens and returns `host:port`.

        Raises:
            Unavailable: the port is taken.
        """
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            raise Unavailable(
                "PORT_IN_USE",
                f"port {port} on {host} cannot be used: {error.strerror}",
                field="http_port",
                value=port,
                remedy="stop the program that holds it or choose another port",
            ) from None
        config = uvicorn.Config(
            self._app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        return f"{host}:{listener.getsockname()[1]}"

    async def stop(self) -> None:
        """Ends open requests and closes the port."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task


def health_app(ready: Callable[[], Awaitable[str]]) -> Starlette:
    """Returns the application of a service that has no other HTTP face."""
    return Starlette(routes=routes(ready))
