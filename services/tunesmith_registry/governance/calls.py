"""What the rpcs of governance have in common: who calls, pages, writes that act once, versions by name."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import models_pb2
from tunesmith_kit import names
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.idempotency import once
from tunesmith_kit.rpc import principal
from tunesmith_kit.telemetry import current_traceparent
from tunesmith_registry import targets
from tunesmith_registry.change import Caller
from tunesmith_registry.tables import REQUESTS

Context = Any
R = TypeVar("R", bound=Message)
VERSION = "projects/*/models/*/versions/*"
MODEL = "projects/*/models/*"


class Listing(Protocol):
    """A request for a page of what lies below `parent`."""

    parent: str
    page_token: str
    page_size: int


def caller(clock: Clock) -> Caller:
    """Returns who makes the call being handled."""
    return Caller(principal().name, clock.now(), current_traceparent())


def place(request: Listing, scope: str = "") -> tuple[str, int]:
    """Returns the cursor behind which a page begins, and its number of rows."""
    return names.page_cursor(scope or request.parent, request.page_token), names.page_size(request.page_size)


def token(scope: str, cursor: str) -> str:
    """Returns the token of the next page, or nothing after the last."""
    return names.page_token(scope, cursor) if cursor else ""


async def change(
    db: Database, who: Caller, request: Message, answer: type[R], act: Callable[[Session], R]
) -> R:
    """Writes, once for each request id."""
    return await db.write(lambda s: once(s, REQUESTS, who.actor, request, lambda: act(s), answer))


def version_of(session: Session, name: str) -> models_pb2.ModelVersion:
    """Returns the version that a name with a number, alias or stage means."""
    project, model_id, wanted = names.parse(VERSION, name)
    return targets.version_of(session, project, model_id, wanted)
