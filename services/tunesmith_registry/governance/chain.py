"""Reading receipts back, and checking a chain of them."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Row, or_, select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import lineage_pb2
from tunesmith_registry import ledger
from tunesmith_registry.governance import keys
from tunesmith_registry.store import cursor_numbers
from tunesmith_registry.tables import RECEIPTS

Item = lineage_pb2.VerifiedItem
_AT_ONCE = 2000


def receipt(row: Row[Any]) -> lineage_pb2.Receipt:
    """A row as a message; what stands in the text is taken from the text."""
    body = json.loads(row.body)
    found = lineage_pb2.Receipt(
        sequence=row.sequence,
        kind=row.kind,
        resource=row.resource,
        actor=body["actor"],
        body=row.body,
        digest=row.digest,
        previous=body["previous"],
        signature=row.signature,
        key_id=row.key_id,
    )
    found.time.FromJsonString(body["time"])
    return found


def page(
    session: Session, project: str, before: str, size: int, resource: str
) -> tuple[list[lineage_pb2.Receipt], str]:
    """Receipts, newest first, and the cursor to the next page."""
    of = RECEIPTS.c
    query = select(RECEIPTS).where(of.project == project)
    if resource:
        below = of.resource.startswith(f"{resource}/", autoescape=True)
        query = query.where(or_(of.resource == resource, below))
    if before:
        query = query.where(of.sequence < cursor_numbers(before, 1)[0])
    rows = session.execute(query.order_by(of.sequence.desc()).limit(size + 1)).all()
    cursor = str(rows[size - 1].sequence) if len(rows) > size else ""
    return [receipt(row) for row in rows[:size]], cursor


def about(session: Session, project: str, resources: list[str]) -> list[lineage_pb2.Receipt]:
    """Receipts about any of these resources, oldest first."""
    of = RECEIPTS.c
    query = select(RECEIPTS).where(of.project == project, of.resource.in_(resources))
    return [receipt(row) for row in session.execute(query.order_by(of.sequence))]


def walk(session: Session, project: str, after: int) -> list[Row[Any]]:
    """The next rows of a chain."""
    of = RECEIPTS.c
    query = select(RECEIPTS).where(of.project == project, of.sequence > after)
    return list(session.execute(query.order_by(of.sequence).limit(_AT_ONCE)).all())


class Check:
    """Follows a chain row by row and tells what is not as it was."""

    def __init__(self, public_key: str) -> None:
        self._public, self._key_id = public_key, keys.key_id(public_key)
        self._sequence, self._digest = 0, ledger.FIRST
        self.num_receipts = 0

    def take_all(self, rows: Sequence[Row[Any]]) -> list[lineage_pb2.VerifiedItem]:
        """Takes the next rows; returns what is wrong."""
        return [item for row in rows for item in self.take(row)]

    def take(self, row: Row[Any]) -> Iterator[lineage_pb2.VerifiedItem]:
        """Yields an item for each thing wrong with a receipt; none when it is good."""
        name = f"receipts/{row.sequence}"
        if row.sequence != self._sequence + 1:
            yield _bad(
                f"receipts/{self._sequence + 1}",
                str(self._sequence + 1),
                str(row.sequence),
                "a receipt is missing",
            )
        found = ledger.digest_of(row.body)
        if found != row.digest:
            yield _bad(name, row.digest, found, "the receipt was changed")
        yield from self._links(name, row)
        if row.key_id != self._key_id:
            yield _bad(name, self._key_id, row.key_id, "the receipt was signed with another key")
        elif not keys.is_signed(self._public, row.digest, row.signature):
            yield _bad(name, "a signature of this key", row.signature[:16], "the signature does not fit")
        self._sequence, self._digest = row.sequence, row.digest
        self.num_receipts += 1

    def _links(self, name: str, row: Row[Any]) -> Iterator[lineage_pb2.VerifiedItem]:
        try:
            body = json.loads(row.body)
            wanted = {"previous": self._digest, "sequence": row.sequence, "resource": row.resource}
            wanted |= {"kind": row.kind, "project": row.project}
            for key, value in wanted.items():
                if body[key] != value:
                    yield _bad(name, str(value), str(body[key]), f"{key} of the receipt does not fit")
        except (ValueError, KeyError, TypeError):
            yield _bad(name, "a receipt", row.body[:40], "the receipt cannot be read")


def _bad(resource: str, wanted: str, found: str, message: str) -> lineage_pb2.VerifiedItem:
    return Item(resource=resource, wanted=wanted, found=found, message=message)
