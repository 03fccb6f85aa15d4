"""The table of runs in memory: a project's jobs, their configuration, the last values of their metrics.

Ten thousand jobs with twenty metrics are 200,000 rows in the database and take a second to read; in columns
they are filtered and sorted in milliseconds. What changed since the last question is read before each.
"""

import asyncio
import json
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tunesmith_kit.db import Database, current_revision
from tunesmith_metrics.tables import REVISION, RUNS, SUMMARIES

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
T = TypeVar("T")
_FIRST_ROWS = 64
_ROW_BYTES, _CELL_BYTES = 6000, 150  # what a job and a summary take, measured


class Column:
    """The summaries of one metric: which rows have it, and their last, smallest and largest values."""

    __slots__ = ("_next", "_slots", "values")

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}
        self.values = np.empty((_FIRST_ROWS, 3))
        self._next = 0

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, row: int, last: float | None, low: float | None, high: float | None) -> None:
        """Enters a summary; None, which the database has for NaN, becomes NaN."""
        slot = self._slots.setdefault(row, self._next)
        self._next = max(self._next, slot + 1)
        if slot == len(self.values):
            self.values = np.concatenate([self.values, np.empty_like(self.values)])
        self.values[slot] = last, low, high  # numpy makes NaN of None

    def drop(self, row: int) -> None:
        """Forgets a row."""
        self._slots.pop(row, None)

    def lasts(self, rows: Sequence[int]) -> list[float | None]:
        """Last values of jobs; None for one that has none."""
        slots = [self._slots.get(row, -1) for row in rows]
        values = self.values[slots, 0].tolist()
        return [None if slot < 0 else value for slot, value in zip(slots, values, strict=True)]

    def whole(self, num_rows: int, which: int) -> tuple[Floats, Mask]:
        """One of the three values of every row, shape (num_rows,), and which rows have it."""
        rows = np.fromiter(self._slots, dtype=np.intp, count=len(self._slots))
        slots = np.fromiter(self._slots.values(), dtype=np.intp, count=len(self._slots))
        values, there = np.full(num_rows, np.nan), np.zeros(num_rows, dtype=bool)
        values[rows] = self.values[slots, which]
        there[rows] = True
        return values, there


class Texts:
    """A field of every row: the different texts, None where it is absent, and which of them each row has."""

    def __init__(self, texts: Iterable[str | None]) -> None:
        places: dict[str | None, int] = {}
        self.codes = np.array([places.setdefault(text, len(places)) for text in texts], dtype=np.intp)
        self.values = list(places)

    def where(self, meets: Callable[[str], bool]) -> Mask:
        """Which rows have a text that meets a condition."""
        return np.array([text is not None and meets(text) for text in self.values], dtype=bool)[self.codes]

    def numbers(self) -> Floats:
        """The texts as numbers; NaN where it is absent or none."""
        return np.array([_number(text) for text in self.values], dtype=np.float64)[self.codes]

    def places(self) -> Floats:
        """Where each text stands in the alphabet; NaN where it is absent."""
        order = {text: float(at) for at, text in enumerate(sorted(t for t in self.values if t is not None))}
        return np.array([order.get(text or "", np.nan) for text in self.values], dtype=np.float64)[self.codes]


def _number(text: str | None) -> float:
    try:
        return math.nan if text is None else float(text)
    except ValueError:
        return math.nan


class Table:
    """A project's runs. `revision` is that up to which it is complete. Rows stay where they are: that of a
    job that went away stays empty, and is in `gone`."""

    def __init__(self, project: str) -> None:
        self.project = project
        self._clear()

    def _clear(self) -> None:
        self.revision = 0
        self.rows: dict[str, int] = {}
        self.gone: list[int] = []
        self.facts: list[Any] = []
        self.labels: list[dict[str, str]] = []
        self.config: list[dict[str, str]] = []
        self.last_steps: list[int] = []
        self.num_points: list[int] = []
        self.metrics: dict[str, Column] = {}
        self._made: dict[str, Any] = {}
        self._texts_there: dict[str, str] = {}

    @property
    def size(self) -> int:
        """Bytes, about."""
        return _ROW_BYTES * len(self.rows) + _CELL_BYTES * sum(map(len, self.metrics.values()))

    def refresh(self, session: Session) -> None:
        """Reads what changed."""
        newest = current_revision(session, REVISION)
        if newest == self.revision:
            return
        mine = RUNS.c.project == self.project
        if newest < self.revision:  # a backup was restored
            self._clear()
        self._read(session, self.revision)
        num_rows = session.execute(select(func.count()).select_from(RUNS).where(mine)).scalar_one()
        if num_rows != len(self.rows):
            self._drop(set(session.execute(select(RUNS.c.job_id).where(mine)).scalars()))
            if len(self.gone) > _FIRST_ROWS + len(self.rows):  # more holes than rows
                self._clear()
                self._read(session, 0)
        self.revision = newest

    def _drop(self, there: Set[str]) -> None:
        """Empties the rows of jobs that went away."""
        for job_id in self.rows.keys() - there:
            row = self.rows.pop(job_id)
            self.gone.append(row)
            self.labels[row], self.config[row] = {}, {}
            for column in self.metrics.values():
                column.drop(row)
        self.metrics = {key: column for key, column in self.metrics.items() if len(column)}
        self._made.clear()

    def _read(self, session: Session, revision: int) -> None:
        run, summary = RUNS.c, SUMMARIES.c
        # What has revision 0 was there before the first migration that counts them.
        changed = (run.project == self.project, run.revision > (revision or -1))
        query = select(
            run.job_id,
            run.display_name,
            run.experiment,
            run.state,
            run.labels,
            run.config,
            run.create_time_us,
        )
        for found in session.execute(query.where(*changed)):
            self._put(found)
        cells = select(
            summary.job_id,
            summary.key,
            summary.last_value,
            summary.min_value,
            summary.max_value,
            summary.last_step,
            summary.num_points,
        )
        touched: dict[int, list[int]] = {}
        joined = cells.join(RUNS, run.job_id == summary.job_id).where(*changed)
        rows, metrics = self.rows, self.metrics
        for job_id, key, last, low, high, last_step, num_points in session.execute(joined):
            row = rows.get(job_id)
            if row is None:
                continue  # it came between the two questions: its revision is newer
            if key not in metrics:
                metrics[key] = Column()
            metrics[key].put(row, last, low, high)
            counts = touched.setdefault(row, [0, 0])
            counts[0] = max(counts[0], last_step)
            counts[1] += num_points
        for row, (last_step, num_points) in touched.items():
            self.last_steps[row], self.num_points[row] = last_step, num_points

    def _put(self, found: Any) -> None:
        row = self.rows.setdefault(found.job_id, len(self.facts))
        if row == len(self.facts):
            self.facts.append(None)
            self.labels.append({})
            self.config.append({})
            self.last_steps.append(0)
            self.num_points.append(0)
        elif self.facts[row] == found:
            return  # only its metrics changed
        self._made.clear()
        self.facts[row] = found
        self.labels[row] = self._words(found.labels)
        self.config[row] = self._words(found.config)

    def _words(self, content: str) -> dict[str, str]:
        """A JSON object of texts; equal texts are kept once, and most jobs are alike in most."""
        one = self._texts_there.setdefault
        return {one(key, key): one(text, text) for key, text in json.loads(content).items()}

    def texts(self, name: str) -> Texts:
        """A field of every row."""
        return self._kept(name, lambda: Texts(self._texts(name)))  # type: ignore[no-any-return]

    def _texts(self, name: str) -> Sequence[str | None]:
        if name == "name":
            return [each.display_name or None for each in self.facts]
        if name in ("state", "experiment"):
            return [getattr(each, name) or None for each in self.facts]
        if name.startswith("label."):
            label = name.removeprefix("label.")
            return [labels.get(label) for labels in self.labels]
        return [config.get(name) for config in self.config]

    @property
    def created(self) -> Floats:
        """When each job was accepted, Unix time in seconds; NaN where the jobs service has not told."""
        return self._kept(  # type: ignore[no-any-return]
            "created as numbers",
            lambda: np.array([each.create_time_us / 1e6 or np.nan for each in self.facts], dtype=np.float64),
        )

    def _kept(self, name: str, make: Any) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def labels_there(self) -> set[str]:
        """Every label that a job has."""
        return self._kept("all labels", lambda: {key for labels in self.labels for key in labels})  # type: ignore[no-any-return]

    def config_there(self) -> dict[str, tuple[int, int]]:
        """Every field of a configuration with how many jobs have it and how many values there are."""
        return self._kept("all config", self._count_config)  # type: ignore[no-any-return]

    def _count_config(self) -> dict[str, tuple[int, int]]:
        counts: Counter[str] = Counter()
        values: dict[str, set[str]] = {}
        for config in self.config:
            counts.update(config.keys())
            for path, text in config.items():
                values.setdefault(path, set()).add(text)
        return {path: (counts[path], len(values[path])) for path in counts}

    def frequent(self) -> list[str]:
        """Keys of metrics, those that most jobs have first."""
        return sorted(self.metrics, key=lambda key: (-len(self.metrics[key]), key))


class Tables:
    """The tables of the projects asked for last, within a bound of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._tables: OrderedDict[str, tuple[asyncio.Lock, Table]] = OrderedDict()

    async def visit(self, db: Database, project: str, work: Callable[[Session, Table], T]) -> T:
        """Runs `work` in a thread with a project's table as it is now. One at a time: the others find what
        the first has read."""
        if project not in self._tables:
            self._tables[project] = (asyncio.Lock(), Table(project))
        self._tables.move_to_end(project)
        lock, table = self._tables[project]

        def run(session: Session) -> T:
            table.refresh(session)
            return work(session, table)

        async with lock:
            try:
                return await db.read(run)
            finally:
                self._let_go()

    def _let_go(self) -> None:
        total = sum(table.size for _, table in self._tables.values())
        while total > self._max_bytes and len(self._tables) > 1:
            total -= self._tables.popitem(last=False)[1][1].size
