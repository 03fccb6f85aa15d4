"""The HTTP application: the routes in one table, and what every request must pass."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.errors import NotFound, PermissionDenied, TunesmithError
from tunesmith_gateway import jobschema
from tunesmith_gateway.openapi import document
from tunesmith_gateway.rest import Rest, problem
from tunesmith_kit import health
from tunesmith_kit.rpc import Authenticate

STATIC = Path(__file__).parent / "static"
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_SAFE = ("GET", "HEAD")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    b"content-security-policy": _POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
_NO_PAGE = """<!doctype html><title>Tunesmith</title><p>The page is not built. Everything else works.
<p>Build it with <code>make web</code> (needs Node.js 20 or newer), then load it again."""


def build(
    rest: Rest,
    services: Sequence[str],
    authenticate: Authenticate,
    allowed_hosts: Sequence[str],
    ready: Callable[[], Awaitable[str]],
) -> Starlette:
    """Returns the application. What is not below `/api/v1/` is public: the page and health, nothing else."""

    async def metrics(request: Request) -> Response:
        try:
            await authenticate({"authorization": request.headers.get("authorization", "")})
        except TunesmithError as error:
            return problem(error)
        return await exposed[2].endpoint(request)  # type: ignore[no-any-return]

    async def openapi(_request: Request) -> Response:
        return Response(document(services), media_type="application/json")

    async def job_schema(_request: Request) -> Response:
        return Response(jobschema.document(), media_type="application/schema+json")

    exposed = health.routes(ready)
    return Starlette(
        routes=[
            *exposed[:2],
            Route("/metrics", metrics),
            Route("/api/v1/openapi.json", openapi),
            Route("/api/v1/job-schema.json", job_schema),
            Route("/api/v1/{path:path}", rest.answer, methods=_METHODS),
            Route("/{path:path}", page),
        ],
        middleware=[Middleware(Guard, allowed_hosts=frozenset(allowed_hosts))],
        exception_handlers={HTTPException: _no_route},
    )


def _no_route(request: Request, error: Exception) -> Response:
    """What no route takes, such as a path with the end of a line in it, is a problem like others."""
    assert isinstance(error, HTTPException)
    found = NotFound(
        "ROUTE_NOT_FOUND",
        f"there is no route {request.method} {request.url.path}",
        field="path",
        value=request.url.path,
        remedy="/api/v1/openapi.json lists the routes",
    )
    return problem(found, status=error.status_code)


async def page(request: Request) -> Response:
    """Serves the page's files; every other path is a view of the page, so it gets the page itself."""
    path: str = request.path_params["path"]
    file = _file(path)
    if file is not None:
        kept = "public, max-age=31536000, immutable" if path.startswith("assets/") else "no-cache"
        return FileResponse(file, headers={"cache-control": kept})
    if path.startswith(("assets/", "api/")):
        return problem(NotFound("ROUTE_NOT_FOUND", f"there is no file /{path}", field="path", value=path))
    index = STATIC / "index.html"
    if not index.is_file():
        return HTMLResponse(_NO_PAGE)
    return FileResponse(index, headers={"cache-control": "no-cache"})


def _file(path: str) -> Path | None:
    """Returns the page's file at a path, or None; nothing outside its folder is ever found."""
    try:
        file = (STATIC / path).resolve()
        return file if file.is_file() and file.is_relative_to(STATIC.resolve()) else None
    except (OSError, ValueError):  # longer than a name may be, or with a null character
        return None


class Guard:
    """Refuses foreign Hosts (DNS rebinding) and Origins (other pages), and adds the security headers."""

    def __init__(self, app: ASGIApp, allowed_hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS.items()]
            await send(message)

        refused = self._refuse(Request(scope))
        await (refused or self._app)(scope, receive, send_with_headers)

    def _refuse(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if "*" not in self._hosts and name.strip("[]") not in self._hosts:
            return problem(
                PermissionDenied(
                    "ORIGIN_REFUSED",
                    "the Host of the request is not allowed",
                    field="Host",
                    value=host,
                    remedy="add it to TUNESMITH_GATEWAY_ALLOWED_HOSTS",
                )
            )
        origin = request.headers.get("origin")
        if request.method not in _SAFE and origin is not None and origin.partition("://")[2] != host:
            return problem(
                PermissionDenied(
                    "ORIGIN_REFUSED",
                    "requests from another site's page are refused",
                    field="Origin",
                    value=origin,
                    remedy="use the page of this server, or a client that is no browser",
                )
            )
        return None
