"""A JSON object read field by field. Every error names the field, its value and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from tunesmith_trainer.failure import TrainerError, invalid_input

E = TypeVar("E", bound=StrEnum)


class Fields:
    """`value`, which stands at `path`. proto3 JSON has 64-bit integers as strings; both are read."""

    def __init__(self, value: object, path: str) -> None:
        self._path = path
        if not isinstance(value, Mapping):
            raise invalid_input(
                "RUN_FOLDER_INVALID", f"{path} is {value!r}, not a JSON object", "write it as an object"
            )
        self._value: Mapping[str, Any] = value

    def error(self, name: str, value: object, remedy: str) -> TrainerError:
        """The error that names a field and its value."""
        return invalid_input("FIELD_INVALID", f"{self._path}.{name} is {value!r}", remedy)

    def has(self, name: str) -> bool:
        """Whether the field is there."""
        return name in self._value

    def part(self, name: str) -> Fields:
        """A field that is an object; absent or null gives an empty one."""
        return Fields(self._value.get(name) or {}, f"{self._path}.{name}")

    def parts(self, name: str) -> list[Fields]:
        """A list of objects; absent or null gives none."""
        value = self._value.get(name) or []
        if not isinstance(value, list):
            raise self.error(name, value, "give a list")
        return [Fields(item, f"{self._path}.{name}[{index}]") for index, item in enumerate(value)]

    def text(self, name: str, *, required: bool = False) -> str:
        """A text; absent gives an empty one."""
        value = self._value.get(name, "")
        if not isinstance(value, str) or (required and not value):
            raise self.error(name, value, "give a text that is not empty")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; absent or null gives none."""
        value = self._value.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, value, "give a list of texts")
        return tuple(value)

    def flag(self, name: str) -> bool:
        """True or false; absent or null gives false."""
        value = self._value.get(name) or False
        if not isinstance(value, bool):
            raise self.error(name, value, "give true or false")
        return value

    def integer(self, name: str, *, default: int = 0, least: int = 0) -> int:
        """A whole number of at least `least`."""
        value = self._value.get(name, default)
        try:
            number = int(value)
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                raise ValueError
        except (TypeError, ValueError, OverflowError) as error:
            raise self.error(name, value, "give a whole number") from error
        if number < least:
            raise self.error(name, value, f"give at least {least}")
        return number

    def number(self, name: str, *, default: float = 0.0, below: float = math.inf) -> float:
        """A number from 0 to below `below`."""
        value = self._value.get(name, default)
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise self.error(name, value, "give a number") from error
        if not 0 <= number < below:
            raise self.error(name, value, f"give a number from 0 to below {below}")
        return number

    def any_number(self, name: str, default: float) -> float:
        """A finite number; absent or null gives `default`."""
        value = self._value.get(name)
        try:
            number = default if value is None else float(value)
        except (TypeError, ValueError) as error:
            raise self.error(name, value, "give a number") from error
        if not math.isfinite(number):
            raise self.error(name, value, "give a finite number")
        return number

    def choice(self, name: str, kind: type[E]) -> E:
        """An enum by its proto name; absent or UNSPECIFIED gives the first member, the proto's default."""
        value = self._value.get(name) or ""
        if value == "" or str(value).endswith("_UNSPECIFIED"):
            return next(iter(kind))
        try:
            return kind(value)
        except ValueError as error:
            raise self.error(name, value, f"use one of {', '.join(kind)}") from error
