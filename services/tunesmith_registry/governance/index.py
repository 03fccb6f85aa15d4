"""The index of the search: one a project, in memory, brought up to date by the receipts before each question.

10,000 models are 30 MB and are read in seconds; from then on each change costs the model it concerns only.
Facets and filters are masks over numpy arrays.
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith_registry.evaluations.tables import EVALUATION_SCORES
from tunesmith_registry.governance.entries import FACETS, Entry, base_entries, model_entries
from tunesmith_registry.governance.vectors import Vectors
from tunesmith_registry.tables import RECEIPTS

Mask = npt.NDArray[np.bool_]
_ROOM = 256


class Index:
    """The entries of one project, and where words, facets and metrics stand in them."""

    def __init__(self, project: str, encoder: str = "") -> None:
        self.project = project
        self.vectors = Vectors(project, encoder)
        self.entries: list[Entry | None] = []
        self._place: dict[str, int] = {}
        self._free: list[int] = []
        self._models: dict[str, set[int]] = {}
        self._words: dict[str, dict[int, float]] = {}
        self._sorted: list[str] | None = None
        self._facets: dict[str, dict[str, set[int]]] = {name: {} for name in FACETS}
        # Values and owners of each facet as arrays, made anew after a change.
        self._flat: dict[str, tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}
        self._metrics: dict[str, npt.NDArray[np.float64]] = {}
        self._sequence = -1
        self.alive: Mask = np.zeros(_ROOM, bool)
        self.seconds = np.zeros(_ROOM)
        self.lock = threading.Lock()

    def refresh(self, session: Session) -> None:
        """Takes over what changed since the last time. The caller holds the lock."""
        of = RECEIPTS.c
        query = select(of.sequence, of.resource).where(
            of.project == self.project, of.sequence > self._sequence
        )
        if self._sequence < 0:
            newest = select(of.sequence).where(of.project == self.project).order_by(of.sequence.desc())
            self._sequence = session.execute(newest.limit(1)).scalar_one_or_none() or 0
            self._add(base_entries(session, self.project))
            self._add(model_entries(session, self.project))
            self.vectors.refresh(session, self._place)
            return
        models: set[str] = set()
        bases: set[str] = set()
        for row in session.execute(query.order_by(of.sequence)):
            self._sequence = row.sequence
            parts = row.resource.split("/")
            if parts[2] == "models":
                models.add(parts[3])
            elif parts[2] == "baseModels":
                bases.add(parts[3])
            elif parts[2] == "evaluations":
                touched = self._scored(session, parts[3])
                models |= touched[0]
                bases |= touched[1]
        for model_id in models:
            self._drop_model(model_id)
            self._add(model_entries(session, self.project, model_id))
        for base_id in bases:
            self._drop(f"projects/{self.project}/baseModels/{base_id}")
            self._add(base_entries(session, self.project, base_id))
        self.vectors.refresh(session, self._place)

    def _scored(self, session: Session, evaluation: str) -> tuple[set[str], set[str]]:
        of = EVALUATION_SCORES.c
        query = select(of.target).where(of.project == self.project, of.evaluation == evaluation)
        names = [target.split("/") for target in session.execute(query).scalars()]
        models = {parts[3] for parts in names if parts[2] == "models"}
        return models, {parts[3] for parts in names if parts[2] == "baseModels"}

    def _add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            at = self._free.pop() if self._free else len(self.entries)
            if at == len(self.entries):
                self.entries.append(None)
            self._grow(at + 1)
            self.entries[at] = entry
            self._place[entry.found.name] = at
            self.vectors.put(at, entry)
            if entry.model_id:
                self._models.setdefault(entry.model_id, set()).add(at)
            self.alive[at] = True
            self.seconds[at] = entry.seconds
            for word, weight in entry.words.items():
                self._posting(word)[at] = weight
            for facet, values in entry.facets.items():
                for value in values:
                    self._facets[facet].setdefault(value, set()).add(at)
            self._flat.clear()
            for metric, number in entry.found.metrics.items():
                self._column(metric)[at] = number

    def _drop_model(self, model_id: str) -> None:
        for at in self._models.pop(model_id, set()):
            entry = self.entries[at]
            assert entry is not None, "what is removed leaves its model too"
            self._remove(at, entry)

    def _drop(self, name: str) -> None:
        at = self._place.get(name)
        entry = self.entries[at] if at is not None else None
        if at is not None and entry is not None:
            self._remove(at, entry)

    def _remove(self, at: int, entry: Entry) -> None:
        for word in entry.words:
            self._words[word].pop(at, None)
        for facet, values in entry.facets.items():
            for value in values:
                self._facets[facet][value].discard(at)
        self._flat.clear()
        for metric in entry.found.metrics:
            self._column(metric)[at] = np.nan
        self.entries[at], self.alive[at] = None, False
        self.vectors.drop(at)
        del self._place[entry.found.name]
        self._free.append(at)

    def _posting(self, word: str) -> dict[int, float]:
        if word not in self._words:
            self._words[word] = {}
            self._sorted = None
        return self._words[word]

    def _column(self, metric: str) -> npt.NDArray[np.float64]:
        if metric not in self._metrics:
            self._metrics[metric] = np.full(len(self.alive), np.nan)
        return self._metrics[metric]

    def _grow(self, size: int) -> None:
        if size <= len(self.alive):
            return
        more = max(size, 2 * len(self.alive)) - len(self.alive)
        self.alive = np.concatenate([self.alive, np.zeros(more, bool)])
        self.seconds = np.concatenate([self.seconds, np.zeros(more)])
        for metric, column in self._metrics.items():
            self._metrics[metric] = np.concatenate([column, np.full(more, np.nan)])

    # Questions.

    def having(self, facet: str, values: Iterable[str]) -> Mask:
        """Where any of the values stands."""
        found = np.zeros(len(self.alive), bool)
        for value in values:
            found[list(self._facets[facet].get(value, ()))] = True
        return found

    def of_model(self, model_id: str) -> Mask:
        """Where a model and its versions stand."""
        found = np.zeros(len(self.alive), bool)
        found[list(self._models.get(model_id, ()))] = True
        return found

    def metric(self, name: str) -> npt.NDArray[np.float64]:
        """The values of a metric, NaN where there is none."""
        column = self._metrics.get(name)
        return column if column is not None else np.full(len(self.alive), np.nan)

    def scores(self, words: Iterable[str]) -> npt.NDArray[np.float64]:
        """How well each entry fits words, all of which must occur; 0 where one does not."""
        total = np.ones(len(self.alive))
        summed = np.zeros(len(self.alive))
        for word in words:
            fit = np.zeros(len(self.alive))
            for known, share in self._beginning(word):
                posting = self._words[known]
                rarity = share * np.log1p(max(1, len(self._place)) / (1 + len(posting)))
                at = np.fromiter(posting.keys(), np.int64, len(posting))
                weights = np.fromiter(posting.values(), np.float64, len(posting))
                fit[at] = np.maximum(fit[at], weights * max(rarity, 0.01))
            total[fit == 0] = 0
            summed += fit
        return np.where(total > 0, summed, 0.0)

    def _beginning(self, word: str) -> list[tuple[str, float]]:
        """Known words that are or begin with a word, and what each counts."""
        if self._sorted is None:
            self._sorted = sorted(self._words)
        found: list[tuple[str, float]] = []
        at = bisect_left(self._sorted, word)
        while at < len(self._sorted) and self._sorted[at].startswith(word) and len(found) < 200:
            found.append((self._sorted[at], 1.0 if self._sorted[at] == word else 0.6))
            at += 1
        return found

    def likeness(self, entry: Entry) -> tuple[npt.NDArray[np.float64], bool]:
        """How alike each entry is, and whether its meaning was known: meaning or weighted words, whichever is
        closer, half; shared properties, half."""
        words = np.zeros(len(self.alive))
        norm = sum(weight * weight for weight in entry.words.values()) ** 0.5 or 1.0
        for word, weight in entry.words.items():
            posting = self._words.get(word, {})
            rarity = np.log1p(len(self._place) / (1 + len(posting)))
            at = np.fromiter(posting.keys(), np.int64, len(posting))
            values = np.fromiter(posting.values(), np.float64, len(posting))
            words[at] += weight * values * rarity
        words /= norm * (words.max() or 1.0) / norm
        shared, possible = np.zeros(len(self.alive)), 0
        for facet in ("base_model", "language", "task", "tag"):
            for value in entry.facets[facet]:
                shared += self.having(facet, [value])
                possible += 1
        meant = self.vectors.of(self._place[entry.found.name])
        if meant is not None:
            words = np.maximum(words, self.closeness(meant))
        return words / 2 + (shared / possible / 2 if possible else 0.0), meant is not None

    def closeness(self, vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Cosine of each entry with a vector; 0 where the meaning is not known (yet)."""
        close = np.zeros(len(self.alive))
        places, cosines = self.vectors.cosines(vector)
        close[places] = cosines
        return close

    def counts(self, mask: Mask) -> dict[str, Counter[str]]:
        """How often each value of each facet occurs among those of a mask."""
        found = {}
        for facet in FACETS:
            values, codes, owners = self._flattened(facet)
            numbers = np.bincount(codes[mask[owners]], minlength=len(values))
            found[facet] = Counter({values[at]: int(numbers[at]) for at in np.flatnonzero(numbers)})
        return found

    def _flattened(self, facet: str) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        if facet not in self._flat:
            known = self._facets[facet]
            sizes = [len(places) for places in known.values()]
            codes = np.repeat(np.arange(len(known)), sizes).astype(np.int64)
            places = (place for owned in known.values() for place in owned)
            self._flat[facet] = (list(known), codes, np.fromiter(places, np.int64, sum(sizes)))
        return self._flat[facet]

    def place(self, name: str) -> int | None:
        """Where an entry stands."""
        return self._place.get(name)


class Indexes:
    """The indexes of the projects asked about lately."""

    def __init__(self, encoder: str = "", most: int = 16) -> None:
        self._encoder, self._most, self._lock = encoder, most, threading.Lock()
        self._known: dict[str, Index] = {}

    def of(self, project: str) -> Index:
        """Returns the index of a project; it may have to be read first."""
        with self._lock:
            index = self._known.pop(project, None) or Index(project, self._encoder)
            self._known[project] = index
            while len(self._known) > self._most:
                del self._known[next(iter(self._known))]
            return index
