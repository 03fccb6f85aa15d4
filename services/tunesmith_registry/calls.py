"""What rpcs share: who calls, and which page of a listing is meant."""

from typing import Protocol

from tunesmith_kit import names
from tunesmith_kit.clock import Clock
from tunesmith_kit.rpc import principal
from tunesmith_kit.telemetry import current_traceparent
from tunesmith_registry.change import Caller


class Listing(Protocol):
    """A request for a page of what a parent has."""

    parent: str
    page_token: str
    page_size: int


def caller_of(clock: Clock) -> Caller:
    """Returns who makes the call being handled, and when."""
    return Caller(principal().name, clock.now(), current_traceparent())


def place(request: Listing) -> tuple[str, int]:
    """Returns the cursor behind which a page begins, and its number of rows."""
    return names.page_cursor(request.parent, request.page_token), names.page_size(request.page_size)


def token(scope: str, cursor: str) -> str:
    """Returns the token of the page behind a cursor; empty when there is none."""
    return names.page_token(scope, cursor) if cursor else ""
