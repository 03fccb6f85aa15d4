"""The tables of the jobs service. A row holds the resource's message and the columns that queries need."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Column, DateTime, Index, LargeBinary, UniqueConstraint, false, or_
from sqlalchemy.orm import registry
from sqlalchemy.sql.elements import ColumnElement
from sqlmodel import Field, SQLModel, col

from tunesmith_kit.db import revision_table
from tunesmith_kit.idempotency import request_table
from tunesmith_kit.outbox import outbox_table


class _Base(SQLModel, registry=registry()):
    pass


METADATA = _Base.metadata
REVISION = revision_table(METADATA)
REQUESTS = request_table(METADATA)
OUTBOX = outbox_table(METADATA)


class JobRow(_Base, table=True):
    """A job. `body` is the whole `Job` message; the other columns repeat what is searched for."""

    __tablename__: ClassVar[str] = "jobs"
    __table_args__: ClassVar[Any] = (
        UniqueConstraint("project", "display_name", name="uq_jobs_name"),
        Index("ix_jobs_list", "project", "id"),
        Index("ix_jobs_queue", "state", "priority", "id"),
        Index("ix_jobs_revision", "revision"),
        Index("ix_jobs_share", "project", "state"),
        Index("ix_jobs_parent", "parent_id"),
        Index("ix_jobs_move", "move_node"),
    )
    id: str = Field(primary_key=True, max_length=26)
    project: str = Field(max_length=64)
    display_name: str = Field(max_length=64)
    experiment: str = Field(max_length=64)
    state: int
    priority: int
    epoch: int = Field(sa_column=Column(BigInteger, nullable=False))
    revision: int = Field(sa_column=Column(BigInteger, nullable=False))
    infra_failures: int = 0
    user_errors: int = 0
    progressed: bool = False
    deleted: bool = False
    parent_id: str = Field(default="", max_length=26)  # job it was forked from
    move_node: str = Field(default="", max_length=63)  # node it is moving to
    last_node: str = Field(default="", max_length=63)  # of the newest attempt: its snapshots lie there
    trained_seconds: float = 0.0  # of the attempts that have ended
    queued_time: datetime | None = Field(
        default=None, sa_column=Column(DateTime(timezone=True), nullable=True)
    )
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class AttemptRow(_Base, table=True):
    """An attempt of a job. `ended` is false while it holds its nodes; `wanted` is a `Desired` (0: run on) and
    `stop_time` when a graceful stop must be over. `node` is the first of its nodes, whose agent speaks for
    the attempt; `places` are all of them with the GPUs it has there, by node rank."""

    __tablename__: ClassVar[str] = "attempts"
    __table_args__: ClassVar[Any] = (Index("ix_attempts_live", "ended", "node"),)
    job_id: str = Field(primary_key=True, max_length=26)
    epoch: int = Field(sa_column=Column(BigInteger, primary_key=True))
    node: str = Field(max_length=63)
    members: str = Field(max_length=65536)  # `|a|b|`: what `holds` searches
    places: list[tuple[str, list[int]]] = Field(sa_column=Column(JSON, nullable=False))
    rendezvous: str = Field(default="", max_length=300)  # where the ranks of several nodes meet
    state: int
    ended: bool
    command_time: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    failure_class: int = 0
    trained_seconds: float = 0.0
    wanted: int = 0
    stop_time: datetime | None = Field(default=None, sa_column=Column(DateTime(timezone=True), nullable=True))
    held_for: str = Field(default="", max_length=26)  # the job it gives way to (PREEMPTED)
    checkpoint_request: int = 0  # checkpoints users asked for
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))

    @property
    def gpus(self) -> dict[str, tuple[int, ...]]:
        """GPUs it has, by node, in the order of node ranks."""
        return {node: tuple(gpus) for node, gpus in self.places}


def members(nodes: Iterable[str]) -> str:
    """Returns the text in which `holds` finds a node."""
    return f"|{'|'.join(nodes)}|"


def holds(nodes: Iterable[str]) -> ColumnElement[bool]:
    """The condition that an attempt has one of these nodes. Their ids have neither `|` nor wildcards."""
    return or_(false(), *(col(AttemptRow.members).contains(f"|{node}|") for node in nodes))


class CheckpointRow(_Base, table=True):
    """A committed checkpoint. An expired one may be removed from the blob store."""

    __tablename__: ClassVar[str] = "checkpoints"
    __table_args__: ClassVar[Any] = (Index("ix_checkpoints_digest", "digest"),)
    job_id: str = Field(primary_key=True, max_length=26)
    step: int = Field(sa_column=Column(BigInteger, primary_key=True))
    epoch: int = Field(sa_column=Column(BigInteger, nullable=False))
    digest: str = Field(max_length=64)
    size_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    eval_loss: float | None = None
    judged: float | None = None
    pinned: bool = False
    expired: bool = False
    create_time: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class QuotaRow(_Base, table=True):
    """What a project may use at once; absent numbers mean no limit."""

    __tablename__: ClassVar[str] = "quotas"
    project: str = Field(primary_key=True, max_length=64)
    max_running_jobs: int | None = None
    max_gpus: int | None = None
    weight: float = 1.0
    revision: int = Field(sa_column=Column(BigInteger, nullable=False))


class NodeRow(_Base, table=True):
    """A node. `body` is the whole `Node` message."""

    __tablename__: ClassVar[str] = "nodes"
    __table_args__: ClassVar[Any] = (Index("ix_nodes_revision", "revision"),)
    id: str = Field(primary_key=True, max_length=63)
    state: int
    revision: int = Field(sa_column=Column(BigInteger, nullable=False))
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
