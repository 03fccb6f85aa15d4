"""The keys of jobs: each has at most as many as its project allows, whatever a trainer invents."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Set

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_kit.subjects import NODE_RANK
from tunesmith_metrics.events import Rank
from tunesmith_metrics.tables import LOG_CHUNKS, METRIC_KEYS

DEFAULT_KEYS = 5000
_MOST_JOBS = 10_000  # remembered


class KeyRing:
    """Which keys jobs have. What it remembers is only what is stored: forget it when a commit failed."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, set[str]] = OrderedDict()

    def forget(self) -> None:
        """Forgets all it remembers."""
        self._known.clear()

    def admit(
        self,
        session: Session,
        batches: Iterable[tuple[Rank, events_pb2.MetricBatch]],
        limit_of: Callable[[str], int],
    ) -> Mapping[Rank, Set[str]]:
        """Enters new keys, as many as the project's limit (0: none) leaves room for; returns the others."""
        new: dict[Rank, dict[str, None]] = {}
        for who, batch in batches:
            known = self._known.get(who.job_id)
            if known is None or not known.issuperset(batch.keys):
                new.setdefault(who, {}).update(dict.fromkeys(batch.keys))
        if not new:
            return {}
        self._read(session, {who.job_id for who in new})
        left_out: dict[Rank, Set[str]] = {}
        rows = []
        for who, keys in new.items():
            known = self._known[who.job_id]
            fresh = [key for key in keys if key not in known]
            limit = limit_of(who.project)
            room = max(0, limit - len(known)) if limit else len(fresh)
            rows += [{"job_id": who.job_id, "key": key} for key in fresh[:room]]
            known.update(fresh[:room])
            if fresh[room:]:
                left_out[who] = frozenset(fresh[room:])
        if rows:
            session.execute(insert(METRIC_KEYS), rows)
        while len(self._known) > _MOST_JOBS:
            self._known.popitem(last=False)
        return left_out

    def _read(self, session: Session, job_ids: Set[str]) -> None:
        for job_id in job_ids:
            self._known[job_id] = set()
        rows = session.execute(select(METRIC_KEYS).where(METRIC_KEYS.c.job_id.in_(job_ids)))
        for job_id, key in rows:
            self._known[job_id].add(key)


def without(batch: events_pb2.MetricBatch, keys: Set[str]) -> events_pb2.MetricBatch:
    """The batch without the values of some keys; its records keep their numbers."""
    part = events_pb2.MetricBatch()
    part.CopyFrom(batch)
    gone = {index for index, key in enumerate(batch.keys) if key in keys}
    for matrix, whole in zip(part.matrices, batch.matrices, strict=True):
        width = len(whole.key_indices)
        stay = [column for column, index in enumerate(whole.key_indices) if index not in gone]
        del matrix.key_indices[:], matrix.values[:]
        matrix.key_indices.extend(whole.key_indices[column] for column in stay)
        values = whole.values
        matrix.values.extend(
            values[row * width + column] for row in range(len(whole.step_deltas)) for column in stay
        )
    return part


def warn(session: Session, who: Rank, limit: int, revision: int) -> None:
    """Says in the log of the job, once an attempt, that values of further keys are lost."""
    chunk = LOG_CHUNKS.c
    mine = (chunk.job_id == who.job_id, chunk.epoch == who.epoch, chunk.rank == NODE_RANK)
    if session.execute(select(chunk.offset).where(*mine)).first() is not None:
        return
    line = (
        f"WARNING: the job logs more than {limit} different metrics; values of further ones are lost. "
        "Use fewer keys, or raise max_keys_per_job of the project."
    )
    size, time_us = len(line.encode()) + 1, time.time_ns() // 1000
    message = events_pb2.LogChunk(
        job_id=who.job_id,
        epoch=who.epoch,
        rank=NODE_RANK,
        offset=0,
        num_bytes=size,
        lines=[line],
        line_offsets=[0],
        levels=[events_pb2.LOG_LEVEL_WARNING],
        steps=[0],
        time_us=time_us,
    )
    session.execute(
        insert(LOG_CHUNKS).values(
            job_id=who.job_id,
            epoch=who.epoch,
            rank=NODE_RANK,
            offset=0,
            num_bytes=size,
            num_lines=1,
            time_us=time_us,
            sort_us=time_us,
            max_level=events_pb2.LOG_LEVEL_WARNING,
            max_step=0,
            revision=revision,
            payload=message.SerializeToString(),
        )
    )
