"""Who calls and what they may: tokens, roles, permissions. Deny is the default."""

import hashlib
import secrets
from collections.abc import Mapping

from sqlalchemy import delete, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from sqlmodel import col

from tunesmith.errors import Unauthenticated
from tunesmith_gateway.tables import TokenRow
from tunesmith_kit.clock import Clock
from tunesmith_kit.db import Database
from tunesmith_kit.rpc import EVERYTHING, Authenticate, Principal

_OWNED = ("jobs", "datasets", "prompts", "models", "evaluations", "alerts", "blobs")
_READ = frozenset(f"{what}.read" for what in (*_OWNED, "nodes", "metrics"))
_WRITE = _READ | {*(f"{what}.write" for what in _OWNED), "models.promote", "chat.use"}

# A permission that no role holds is open to admins only; a role that is not here may do nothing.
ROLES: Mapping[str, frozenset[str]] = {
    "admin": EVERYTHING,
    "developer": _WRITE,
    "viewer": _READ,
    "node": frozenset({"nodes.report", "blobs.read", "blobs.write"}),
}


def digest(token: str) -> str:
    """Returns how a token is stored; tokens have 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The tokens of the platform. One that was found is remembered until a token changes in this process."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock
        self._known: dict[str, Principal] = {}

    async def ensure(self, name: str, role: str, token: str) -> None:
        """Makes `token` valid, replacing an earlier token of that name."""
        dialect = postgresql if self._db.dialect == "postgresql" else sqlite
        values = {"name": name, "role": role, "sha256": digest(token), "create_time": self._clock.now()}
        changed = {key: values[key] for key in ("role", "sha256")}
        statement = (
            dialect.insert(TokenRow)
            .values(values)
            .on_conflict_do_update(index_elements=["name"], set_=changed)
        )
        await self._db.write(lambda session: session.execute(statement))
        self._known.clear()

    async def end(self, name: str) -> None:
        """Makes the token of that name invalid, if there is one."""
        await self._db.write(lambda s: s.execute(delete(TokenRow).where(col(TokenRow.name) == name)))
        self._known.clear()

    async def first_admin(self) -> str | None:
        """Makes an admin token if there is none and returns it, the only time it can be seen."""
        token = f"ts_{secrets.token_urlsafe(32)}"

        def act(session: Session) -> bool:
            if session.execute(select(TokenRow).where(col(TokenRow.role) == "admin").limit(1)).first():
                return False
            row = {
                "name": "admin",
                "role": "admin",
                "sha256": digest(token),
                "create_time": self._clock.now(),
            }
            session.execute(insert(TokenRow).values(row))
            return True

        return token if await self._db.write(act) else None

    async def find(self, token: str) -> Principal | None:
        """Returns whose token it is."""
        key = digest(token)
        if key not in self._known:
            query = select(TokenRow).where(col(TokenRow.sha256) == key)
            row = await self._db.read(lambda session: session.execute(query).scalar_one_or_none())
            if row is None:
                return None
            self._known[key] = Principal(row.name, row.role, ROLES.get(row.role, frozenset()))
        return self._known[key]


def authenticator(tokens: Tokens) -> Authenticate:
    """Returns the check of every call: a bearer token in the metadata or header `authorization`."""

    async def authenticate(metadata: Mapping[str, str]) -> Principal:
        kind, _, token = metadata.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise Unauthenticated(
                "TOKEN_MISSING",
                "no token was sent",
                field="authorization",
                remedy="set TUNESMITH_TOKEN, or sign in on the page with the token shown at the first start",
            )
        caller = await tokens.find(token.strip())
        if caller is None:
            raise Unauthenticated(
                "TOKEN_INVALID",
                "the token is not known",
                field="authorization",
                remedy="check TUNESMITH_TOKEN; `up` keeps the admin token in secrets.json of its data folder",
            )
        return caller

    return authenticate
