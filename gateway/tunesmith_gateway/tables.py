"""The tables of the gateway: tokens."""

from datetime import datetime
from typing import ClassVar

from sqlalchemy import Column, DateTime
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel


class _Base(SQLModel, registry=registry()):
    pass


METADATA = _Base.metadata


class TokenRow(_Base, table=True):
    """A token. Only its hash is kept."""

    __tablename__: ClassVar[str] = "tokens"
    name: str = Field(primary_key=True, max_length=128)
    role: str = Field(max_length=32)
    sha256: str = Field(max_length=64, unique=True)
    create_time: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
