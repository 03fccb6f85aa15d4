"""Encodes what is said of models in the background, and what somebody asks at once."""

import asyncio
import logging
from dataclasses import dataclass

from sqlalchemy.orm import Session

from tunesmith.errors import FailedPrecondition
from tunesmith_kit.db import Database
from tunesmith_kit.watch import CommitSignal
from tunesmith_registry.governance import vectors
from tunesmith_registry.governance.encoding import MISSING, Encoder, EncoderError
from tunesmith_registry.governance.index import Index, Indexes
from tunesmith_registry.governance.vectors import Floats, Lacking

log = logging.getLogger(__name__)
_AT_ONCE = 4  # a question waits for one batch at most
_POLL_SECONDS = 5.0  # finds what other replicas changed


@dataclass(frozen=True, slots=True)
class Meaning:
    """What words mean: a vector, or none and why."""

    vector: Floats | None = None
    reason: str = ""


class Embedder:
    """Meanings of one registry. Without an encoder it says so and does nothing."""

    def __init__(self, db: Database, encoder: Encoder | None, indexes: Indexes) -> None:
        self._db, self._encoder, self._indexes = db, encoder, indexes
        self._signal = CommitSignal(db)
        self._seen: dict[str, int] = {}

    @property
    def missing(self) -> str:
        """Why there is no encoder; empty: there is one."""
        return "" if self._encoder is not None else MISSING

    async def meaning(self, text: str) -> Meaning:
        """What a text means."""
        if self._encoder is None:
            return Meaning(reason=MISSING)
        try:
            return Meaning(await asyncio.to_thread(self._encoder.question, text))
        except EncoderError as error:
            return Meaning(reason=str(error))

    async def run(self) -> None:
        """Encodes what changed, for ever."""
        if self._encoder is None:
            return
        while True:
            armed = self._signal.arm()
            try:
                await self._round(self._encoder)
            except EncoderError as error:  # it is tried again, and whoever searches is told
                log.warning("texts could not be encoded", extra={"error": str(error)})
            await asyncio.to_thread(self._encoder.cool)
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await armed.wait()
            except TimeoutError:
                continue

    async def _round(self, encoder: Encoder) -> None:
        for project, sequence in (await self._db.read(vectors.newest)).items():
            if self._seen.get(project) != sequence:
                await self._catch_up(encoder, project)
                self._seen[project] = sequence

    async def _catch_up(self, encoder: Encoder, project: str) -> None:
        index = self._indexes.of(project)
        lacking, gone = await self._db.read(lambda session: _look(session, index))
        if gone:
            await self._db.write(lambda session: vectors.forget(session, project, gone))
        for start in range(0, len(lacking), _AT_ONCE):
            part = lacking[start : start + _AT_ONCE]
            found = await asyncio.to_thread(encoder.encode, [text.text for text in part])
            await self._db.write(
                lambda s, part=part, found=found: vectors.store(  # type: ignore[misc]
                    s, project, encoder.digest, part, list(found)
                )
            )

    async def close(self) -> None:
        """Ends the encoder."""
        if self._encoder is not None:
            await asyncio.to_thread(self._encoder.close)


def _look(session: Session, index: Index) -> tuple[list[Lacking], list[str]]:
    """Texts to encode, and names whose vectors may go. Another process may have encoded meanwhile."""
    with index.lock:
        index.refresh(session)
        lacking = index.vectors.lacking()
        gone = [name for name in vectors.stored(session, index.project) if index.place(name) is None]
    return lacking, gone


def unavailable(meaning: Meaning) -> FailedPrecondition:
    """The error of a search that wants the meaning and nothing else."""
    return FailedPrecondition(
        "MEANING_UNAVAILABLE",
        f"words cannot be searched by their meaning: {meaning.reason}",
        field="mode",
        value="SEARCH_MODE_MEANING",
        remedy="leave the mode away: words are looked up as full text then",
    )
