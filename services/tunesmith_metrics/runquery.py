"""Questions to a table of runs: filter, order, page."""

import difflib
import hashlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.api.metrics.v1 import runs_pb2
from tunesmith.errors import InvalidArgument
from tunesmith_kit import names
from tunesmith_metrics import filters
from tunesmith_metrics.filters import Condition, Name
from tunesmith_metrics.runtable import Floats, Mask, Table

_FACTS = ("name", "state", "experiment")
_EXTREMES = {"": 0, "min": 1, "max": 2}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MOST_METRICS = 100
_DEFAULT_ORDER = "created desc"
Rows = NDArray[np.intp]


class Query:
    """What a request asks of a table. The table must not change meanwhile."""

    def __init__(self, table: Table, request: runs_pb2.QueryRunsRequest) -> None:
        self._table, self._request = table, request
        self._condition = filters.parse(request.filter)
        self._orders = filters.parse_order(request.order_by or _DEFAULT_ORDER)

    def answer(self, revision: int) -> runs_pb2.QueryRunsResponse:
        """Returns a page of rows.

        Raises:
            InvalidArgument: a name is misspelt, a comparison does not fit, or the page token is not ours.
        """
        rows = self._ordered(np.flatnonzero(self._matching()))
        size = names.page_size(self._request.page_size, 100)
        start = self._start(rows)
        page = rows[start : start + size]
        token = ""
        if start + size < len(rows):
            last = self._table.facts[page[-1]].job_id
            token = names.page_token(self._scope, f"{start + size}.{last}")
        return runs_pb2.QueryRunsResponse(
            runs=self._runs(page.tolist()),
            next_page_token=token,
            total_size=len(rows),
            revision=revision,
        )

    @property
    def _scope(self) -> str:
        asked = "\0".join((self._request.parent, self._request.filter, self._request.order_by))
        return hashlib.sha256(asked.encode()).hexdigest()[:16]

    def _start(self, rows: Rows) -> int:
        """Where the page begins: behind the last row of the page before, wherever it is now."""
        cursor = names.page_cursor(self._scope, self._request.page_token)
        if not cursor:
            return 0
        offset, _, last = cursor.partition(".")
        row = self._table.rows.get(last)
        found = np.flatnonzero(rows == row).tolist() if row is not None else []
        if found:
            return int(found[0]) + 1
        # The token is opaque, not signed: a forged one shows another page, nothing more.
        return min(int(offset), len(rows)) if offset.isdecimal() and len(offset) < 10 else 0

    def _matching(self) -> Mask:
        matching = np.ones(len(self._table.facts), dtype=bool)
        if self._condition is not None:
            for name in filters.names(self._condition):
                self._check(name, "filter", self._request.filter)
            matching = self._met(self._condition).copy()
        matching[self._table.gone] = False
        return matching

    def _met(self, condition: Condition) -> Mask:
        if isinstance(condition, filters.Both):
            return np.asarray(np.logical_and.reduce([self._met(part) for part in condition.parts]))
        if isinstance(condition, filters.Either):
            return np.asarray(np.logical_or.reduce([self._met(part) for part in condition.parts]))
        if isinstance(condition, filters.Not):
            return ~self._met(condition.inner)
        if isinstance(condition, filters.Has):
            return self._there(condition.name)
        if isinstance(condition, filters.Match):
            return self._found(condition)
        return self._compared(condition)

    def _is_metric(self, name: Name) -> bool:
        if name.extreme:
            return True
        own = name.text in (*_FACTS, "created") or name.text.startswith("label.")
        return not own and name.text in self._table.metrics

    def _there(self, name: Name) -> Mask:
        if self._is_metric(name):
            return self._values(name)[1]
        if name.text == "created":
            return ~np.isnan(self._table.created)
        return self._table.texts(name.text).where(lambda text: True)

    def _values(self, name: Name) -> tuple[Floats, Mask]:
        column = self._table.metrics.get(name.text)
        if column is None:
            num_rows = len(self._table.facts)
            return np.full(num_rows, np.nan), np.zeros(num_rows, dtype=bool)
        return column.whole(len(self._table.facts), _EXTREMES[name.extreme])

    def _found(self, condition: filters.Match) -> Mask:
        if self._is_metric(condition.name) or condition.name.text == "created":
            raise self._unfit(condition.name, "~ is for texts; this is a number")
        search = condition.pattern.search
        return self._table.texts(condition.name.text).where(lambda text: search(text) is not None)

    def _compared(self, condition: filters.Comparison) -> Mask:
        name = condition.name
        if self._is_metric(name) or name.text == "created":
            return self._compared_numbers(condition)
        if condition.operator in _COMPARE:
            value = condition.values[0]
            if isinstance(value, str):
                raise self._unfit(name, f"{condition.operator} wants a number, not {value!r}")
            return np.asarray(_COMPARE[condition.operator](self._table.texts(name.text).numbers(), value))
        texts = self._table.texts(name.text)
        # States and choices are written in capitals or not.
        wanted = {text.casefold() for text in condition.texts}
        equal = texts.where(lambda text: text.casefold() in wanted)
        for value in condition.values:
            if not isinstance(value, str):
                equal |= texts.numbers() == value  # 16 and 16.0
        return ~equal if condition.operator == "!=" else equal

    def _compared_numbers(self, condition: filters.Comparison) -> Mask:
        name = condition.name
        if name.text == "created":
            values = self._table.created
            there = ~np.isnan(values)
            wanted = [self._moment(name, text) for text in condition.texts]
        else:
            values, there = self._values(name)
            wanted = [self._number(name, value) for value in condition.values]
        if condition.operator in _COMPARE:
            return np.asarray(_COMPARE[condition.operator](values, wanted[0]))  # NaN compares with nothing
        equal = np.zeros(len(values), dtype=bool)
        for value in wanted:
            equal |= np.isnan(values) if np.isnan(value) else values == value
        equal &= there
        return ~equal if condition.operator == "!=" else equal

    def _number(self, name: Name, value: filters.Value) -> float:
        if isinstance(value, str):
            raise self._unfit(name, f"it is compared with a number, not with {value!r}")
        return value

    def _moment(self, name: Name, text: str) -> float:
        time = filters.moment(text)
        if time is None:
            raise self._unfit(name, f"it is compared with a date such as 2026-01-31, not with {text!r}")
        return time

    def _unfit(self, name: Name, problem: str) -> InvalidArgument:
        return filters.refuse("filter", name, self._request.filter, f"{name.text}: {problem}")

    def _check(self, name: Name, field: str, text: str) -> None:
        """Refuses a name that no job has if it looks like one that jobs have."""
        table, text_of = self._table, name.text
        if text_of in (*_FACTS, "created") or text_of in table.metrics:
            return
        if any(text_of in config for config in table.config):
            return
        known = self._known()
        if text_of in known:
            return
        near = difflib.get_close_matches(text_of, known, n=1, cutoff=0.8)
        if near:
            problem = f"no job has {text_of}; did you mean {near[0]}?"
            raise filters.refuse(field, name, text, problem)

    def _known(self) -> set[str]:
        labels = {f"label.{label}" for label in self._table.labels_there()}
        return {*_FACTS, "created", *labels, *self._table.metrics, *self._table.config_there()}

    def _ordered(self, rows: Rows) -> Rows:
        # What is equal in everything stays in the order in which the jobs were first heard of.
        columns: list[NDArray[Any]] = [-np.nan_to_num(self._table.created)[rows]]
        for order in reversed(self._orders):
            self._check(order.name, "order_by", self._request.order_by)
            values, absent = self._sortable(order.name)
            columns.append(-values[rows] if order.descending else values[rows])
            columns.append(absent[rows])
        return rows[np.lexsort(columns)]  # the last column sorts first

    def _sortable(self, name: Name) -> tuple[Floats, Mask]:
        """Numbers to sort rows by, and which have none."""
        if self._is_metric(name):
            values = self._values(name)[0]
        elif name.text == "created":
            values = self._table.created
        else:
            texts = self._table.texts(name.text)
            values = texts.numbers()
            if np.isnan(values[texts.where(lambda text: True)]).any():  # not all are numbers
                values = texts.places()
        absent = np.isnan(values)
        return np.where(absent, 0.0, values), absent

    def _metrics(self) -> Sequence[str]:
        return list(self._request.metrics) or self._table.frequent()[:_MOST_METRICS]

    def _runs(self, rows: Sequence[int]) -> list[runs_pb2.Run]:
        found: list[dict[str, float]] = [{} for _ in rows]
        for key in self._metrics():
            column = self._table.metrics.get(key)
            for values, value in zip(found, column.lasts(rows) if column else (), strict=False):
                if value is not None:
                    values[key] = value
        return [self._run(row, values) for row, values in zip(rows, found, strict=True)]

    def _run(self, row: int, values: dict[str, float]) -> runs_pb2.Run:
        table, facts = self._table, self._table.facts[row]
        config = table.config[row]
        if self._request.config:
            config = {path: config[path] for path in self._request.config if path in config}
        run = runs_pb2.Run(
            job=f"projects/{table.project}/jobs/{facts.job_id}",
            display_name=facts.display_name,
            experiment=facts.experiment,
            state=facts.state,
            labels=table.labels[row],
            metrics=values,
            config=config,
            last_step=table.last_steps[row],
            num_points=table.num_points[row],
        )
        if facts.create_time_us:
            run.create_time.FromMicroseconds(facts.create_time_us)
        return run


def columns(table: Table) -> runs_pb2.ListRunColumnsResponse:
    """Returns what can be shown, filtered and sorted by."""
    config = table.config_there()
    by_interest = sorted(config, key=lambda path: (config[path][1] < 2, -config[path][0], path))
    return runs_pb2.ListRunColumnsResponse(
        metrics=[runs_pb2.RunColumn(name=key, num_runs=len(table.metrics[key])) for key in table.frequent()],
        config=[
            runs_pb2.RunColumn(name=path, num_runs=config[path][0], num_values=config[path][1])
            for path in by_interest
        ],
    )
