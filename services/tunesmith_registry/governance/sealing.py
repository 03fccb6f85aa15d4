"""Signs receipts soon after the commit that wrote them; what a killed service left is signed at its start."""

import asyncio

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from tunesmith_kit.db import Database
from tunesmith_registry.governance.keys import SigningKey
from tunesmith_registry.tables import RECEIPTS

_AT_ONCE = 500


class Sealer:
    """Signs what has no signature yet, in the order of the chain."""

    def __init__(self, db: Database, key: SigningKey) -> None:
        self._db, self.key = db, key
        self._wake = asyncio.Event()
        db.on_commit(self._wake.set)

    async def run(self) -> None:
        """Signs after every commit, for ever."""
        while True:
            self._wake.clear()
            await self.seal()
            await self._wake.wait()

    async def seal(self) -> None:
        """Signs everything there is now."""
        while await self._db.read(_unsigned):
            await self._db.write(self._sign)

    def _sign(self, session: Session) -> None:
        of = RECEIPTS.c
        for row in _unsigned(session):
            session.execute(
                update(RECEIPTS)
                .where(of.project == row[0], of.sequence == row[1])
                .values(signature=self.key.sign(row[2]), key_id=self.key.key_id)
            )


def _unsigned(session: Session) -> list[tuple[str, int, str]]:
    of = RECEIPTS.c
    query = select(of.project, of.sequence, of.digest).where(of.key_id == "")
    rows = session.execute(query.order_by(of.project, of.sequence).limit(_AT_ONCE))
    return [(row.project, row.sequence, row.digest) for row in rows]
