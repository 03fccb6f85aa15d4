"""Vectors of what entries mean: kept in the database, and in memory beside the index of the search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from tunesmith_kit.db import next_revision
from tunesmith_registry.governance.entries import Entry
from tunesmith_registry.governance.tables import TEXT_VECTORS
from tunesmith_registry.tables import RECEIPTS, REVISION

Floats = npt.NDArray[np.float32]
_ROOM = 256
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Lacking:
    """A text whose meaning is not known yet."""

    name: str
    text: str
    text_digest: str


class Vectors:
    """Those of one project, by the place of the entry. Without an `encoder` nothing is known."""

    def __init__(self, project: str, encoder: str) -> None:
        self._project, self._encoder = project, encoder
        self._revision = 0
        # By name: what is stored may be of a text that is no longer, or not yet, the entry's.
        self._stored: dict[str, tuple[str, bytes]] = {}
        self._texts: dict[int, Lacking] = {}
        # Without gaps, for versions have none: with a row a place, a question would read three times as much.
        self._rows: Floats = np.zeros((0, 0), np.float32)
        self._places: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._row_of: dict[int, int] = {}
        self._lacking: set[int] = set()

    def refresh(self, session: Session, places: Mapping[str, int]) -> None:
        """Takes over what was encoded since the last time."""
        if not self._encoder:
            return
        of = TEXT_VECTORS.c
        query = select(of.revision, of.resource, of.text_digest, of.vector).where(
            of.project == self._project, of.revision > self._revision, of.encoder == self._encoder
        )
        for row in session.execute(query.order_by(of.revision)):
            self._revision = row.revision
            self._stored[row.resource] = (row.text_digest, row.vector)
            at = places.get(row.resource)
            if at is not None and at in self._texts:
                self._set(at, self._texts[at])

    def put(self, at: int, entry: Entry) -> None:
        """Notes the text of an entry, and its vector if it is known."""
        if self._encoder and entry.text:
            wanted = Lacking(entry.found.name, entry.text, entry.text_digest)
            self._texts[at] = wanted
            self._set(at, wanted)

    def drop(self, at: int) -> None:
        """Forgets the entry of a place."""
        self._texts.pop(at, None)
        self._lacking.discard(at)
        row = self._row_of.pop(at, None)
        if row is not None:  # the last one takes its row
            last = len(self._row_of)
            self._rows[row], self._places[row] = self._rows[last], self._places[last]
            if last != row:
                self._row_of[int(self._places[row])] = row

    def _set(self, at: int, wanted: Lacking) -> None:
        digest, data = self._stored.get(wanted.name, ("", b""))
        if digest != wanted.text_digest:
            self._lacking.add(at)
            return
        vector = np.frombuffer(data, "<f2").astype(np.float32)
        row = self._row_of.setdefault(at, len(self._row_of))
        if row >= len(self._rows):
            grown = np.zeros((max(_ROOM, 2 * row), len(vector)), np.float32)
            places = np.zeros(len(grown), np.int64)
            if row:
                grown[:row], places[:row] = self._rows, self._places
            self._rows, self._places = grown, places
        self._rows[row], self._places[row] = vector, at
        self._lacking.discard(at)

    def lacking(self) -> list[Lacking]:
        """Texts that nobody has encoded yet."""
        return [self._texts[at] for at in sorted(self._lacking)]

    @property
    def progress(self) -> tuple[int, int]:
        """How many texts are encoded, and how many there are."""
        return len(self._texts) - len(self._lacking), len(self._texts)

    def of(self, at: int) -> Floats | None:
        """The vector of a place; None when it is not known."""
        row = self._row_of.get(at)
        return None if row is None or at in self._lacking else self._rows[row]

    def cosines(self, vector: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
        """Places whose meaning is known, and the cosine of each with a vector."""
        num = len(self._row_of) if self._rows.shape[1] == len(vector) else 0
        return self._places[:num], self._rows[:num] @ vector if num else np.zeros(0, np.float32)


def newest(session: Session) -> dict[str, int]:
    """The number of the newest receipt of each project."""
    of = RECEIPTS.c
    query = select(of.project, func.max(of.sequence)).group_by(of.project)
    return {project: sequence for project, sequence in session.execute(query)}


def store(
    session: Session, project: str, encoder: str, texts: Sequence[Lacking], vectors: Sequence[Floats]
) -> None:
    """Keeps the vectors of texts, in place of those their resources had."""
    of, revision = TEXT_VECTORS.c, next_revision(session, REVISION)
    names = [text.name for text in texts]
    session.execute(delete(TEXT_VECTORS).where(of.project == project, of.resource.in_(names)))
    session.execute(
        insert(TEXT_VECTORS),
        [
            {
                "project": project,
                "resource": text.name,
                "revision": revision,
                "encoder": encoder,
                "text_digest": text.text_digest,
                "vector": vector.astype("<f2").tobytes(),
            }
            for text, vector in zip(texts, vectors, strict=True)
        ],
    )


def stored(session: Session, project: str) -> set[str]:
    """Names of the resources that have vectors."""
    query = select(TEXT_VECTORS.c.resource).where(TEXT_VECTORS.c.project == project)
    return set(session.execute(query).scalars())


def forget(session: Session, project: str, names: Sequence[str]) -> None:
    """Removes the vectors of resources that are no longer there."""
    of = TEXT_VECTORS.c
    for start in range(0, len(names), _AT_ONCE):
        part = names[start : start + _AT_ONCE]
        session.execute(delete(TEXT_VECTORS).where(of.project == project, of.resource.in_(part)))
