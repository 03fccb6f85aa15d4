"""Repeated requests: the same `request_id` gives the same answer and acts once (AIP-155)."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from google.protobuf.message import Message
from sqlalchemy import Column, DateTime, LargeBinary, MetaData, String, Table, delete, insert, select
from sqlalchemy.orm import Session

from tunesmith.errors import AlreadyExists

R = TypeVar("R", bound=Message)
KEPT = timedelta(hours=24)


def request_table(metadata: MetaData) -> Table:
    """Returns the table of answered requests."""
    return Table(
        "requests",
        metadata,
        Column("key", String(300), primary_key=True),
        Column("body_sha256", String(64), nullable=False),
        Column("response", LargeBinary, nullable=False),
        Column("time", DateTime(timezone=True), nullable=False, index=True),
    )


def once(
    session: Session, table: Table, principal: str, request: Message, act: Callable[[], R], answer: type[R]
) -> R:
    """Returns `act()`, or the answer kept from the first time the caller sent this request id.

    Raises:
        AlreadyExists: the caller used the id for a request with another body.
    """
    request_id: str = getattr(request, "request_id")  # noqa: B009  every mutation of the contract has it
    if not request_id:
        return act()
    body = type(request)()
    body.CopyFrom(request)
    body.ClearField("request_id")
    digest = hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()
    key = f"{principal}:{request.DESCRIPTOR.name}:{request_id}"
    row = session.execute(
        select(table.c.body_sha256, table.c.response).where(table.c.key == key)
    ).one_or_none()
    if row is not None:
        if row.body_sha256 != digest:
            raise AlreadyExists(
                "REQUEST_ID_REUSED",
                "the request id was used for another request",
                field="request_id",
                value=request_id,
                remedy="use a new id for a new request",
            )
        return answer.FromString(row.response)
    response = act()
    now = datetime.now(UTC)
    session.execute(delete(table).where(table.c.time < now - KEPT))
    session.execute(
        insert(table).values(key=key, body_sha256=digest, response=response.SerializeToString(), time=now)
    )
    return response
