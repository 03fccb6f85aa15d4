"""Histograms, texts and pictures as they come: one a step and key, the one that was logged last."""

from collections.abc import Mapping, Set
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2, metrics_pb2
from tunesmith_metrics.events import Rank
from tunesmith_metrics.rows import upsert
from tunesmith_metrics.tables import RICH_VALUES

_KINDS = {
    "histogram": metrics_pb2.METRIC_KIND_HISTOGRAM,
    "text": metrics_pb2.METRIC_KIND_TEXT,
    "picture": metrics_pb2.METRIC_KIND_PICTURE,
}
_Place = tuple[str, int, str]  # job, step, key


class RichRows:
    """Values that one write brings. Of one step and key the highest epoch counts, then the lowest rank, then
    the latest record, in whatever order they come."""

    def __init__(self, session: Session, revision: int) -> None:
        self._session, self._revision = session, revision
        self._rows: dict[_Place, dict[str, Any]] = {}

    def add(self, who: Rank, batch: events_pb2.MetricBatch, left_out: Set[str] = frozenset()) -> None:
        """Takes in the values of a checked batch."""
        for index, value in enumerate(batch.rich):
            key = batch.keys[value.key_index]
            kind = value.WhichOneof("value")
            if key in left_out or kind is None:
                continue
            row = {
                "job_id": who.job_id,
                "step": value.step,
                "key": key,
                "kind": int(_KINDS[kind]),
                "epoch": who.epoch,
                "rank": who.rank,
                "seq": batch.first_seq + index,
                "revision": self._revision,
                "payload": value.SerializeToString(),
            }
            place = (who.job_id, value.step, key)
            if place not in self._rows or _weight(row) > _weight(self._rows[place]):
                self._rows[place] = row

    def save(self) -> None:
        """Writes what counts more than what is there."""
        rows = []
        of = RICH_VALUES.c
        for (job_id, step, key), row in self._rows.items():
            there = self._session.execute(
                select(of.epoch, of.rank, of.seq).where(of.job_id == job_id, of.step == step, of.key == key)
            ).mappings()
            known = there.one_or_none()
            if known is None or _weight(row) > _weight(known):
                rows.append(row)
        upsert(self._session, RICH_VALUES, rows)


def _weight(row: Mapping[Any, Any]) -> tuple[int, int, int]:
    return row["epoch"], -row["rank"], row["seq"]
