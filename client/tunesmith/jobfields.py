"""Plain values (from YAML) into a message, guided by the message's description.

Reading walks the descriptors of JobSpec, so a field added to the contract is known here without a line of
code. Nothing is guessed: a value of another type is a mistake, named with path, value and remedy.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tunesmith import names
from tunesmith.errors import Violation

_DURATION = "google.protobuf.Duration"
_DURATION_TEXT = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
# Looking for what was meant takes a millisecond a key; who errs more often has pasted something else.
_MOST_HINTS = 50
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


class _Wrong(Exception):
    """A value that does not fit its field."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy


@dataclass
class Reading:
    """What was found while filling a message: mistakes, and on which line each path stands (if known)."""

    root: Descriptor
    mistakes: list[Violation] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)

    def wrong(self, path: str, value: object, problem: str, remedy: str = "") -> None:
        """Notes a mistake."""
        self.mistakes.append(Violation(path, shown(value), problem, remedy))

    def fill(self, message: Message, values: Any, prefix: str = "") -> None:
        """Sets the fields of `message` from a mapping; what does not fit is noted and left out."""
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            self.wrong(
                prefix.rstrip("."), values, "is not a mapping of keys to values", _remedy_mapping(message)
            )
            return
        for key, value in values.items():
            path = f"{prefix}{key}"
            self.lines[path] = getattr(values, "lines", {}).get(key, 0)
            known = _fields(message).get(str(key))
            if known is None:
                remedy = self._did_you_mean(message, str(key), prefix)
                self.wrong(path, value, f"is not a key {_of(prefix)}", remedy)
            elif rival := _rival(message, known):
                self.wrong(path, value, f"excludes {prefix}{rival}", f"keep one of {known.name} and {rival}")
            else:
                self._set(message, known, path, value)

    def _set(self, message: Message, known: FieldDescriptor, path: str, value: Any) -> None:
        try:
            if known.message_type is not None and known.message_type.GetOptions().map_entry:
                self._fill_map(message, known, path, value)
            elif known.is_repeated:
                self._fill_list(message, known, path, value)
            elif known.message_type is None:
                setattr(message, known.name, _scalar(known, value))
            elif known.message_type.full_name == _DURATION:
                _set_duration(getattr(message, known.name), value)
            else:
                nested = getattr(message, known.name)
                nested.SetInParent()
                self.fill(nested, value, path + ".")
        except _Wrong as wrong:
            self.wrong(path, value, wrong.problem, wrong.remedy)

    def _fill_map(self, message: Message, known: FieldDescriptor, path: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            raise _Wrong("is not a mapping of keys to values", f"write `{known.name}: {{team: search}}`")
        assert known.message_type is not None, "a map is a message"
        item = known.message_type.fields_by_name["value"]
        for key, text in value.items():
            try:
                getattr(message, known.name)[str(key)] = _scalar(item, text)
            except _Wrong as wrong:
                self.wrong(f"{path}.{key}", text, wrong.problem, wrong.remedy)

    def _fill_list(self, message: Message, known: FieldDescriptor, path: str, value: Any) -> None:
        if not isinstance(value, list | tuple):
            raise _Wrong("is not a list", f"write `{known.name}: [..., ...]`")
        for index, item in enumerate(value):
            place = f"{path}[{index}]"
            try:
                if known.message_type is None:
                    getattr(message, known.name).append(_scalar(known, item))
                else:
                    self.fill(getattr(message, known.name).add(), item, place + ".")
            except _Wrong as wrong:
                self.wrong(place, item, wrong.problem, wrong.remedy)

    def _did_you_mean(self, message: Message, key: str, prefix: str) -> str:
        if len(self.mistakes) >= _MOST_HINTS:
            return ""
        siblings = list(_fields(message))
        if near := difflib.get_close_matches(key, siblings, n=1, cutoff=0.7):
            return f"did you mean {prefix}{near[0]}?"
        # A good key in the wrong place is the commonest slip: `learning_rate` without `training:` above it.
        paths = list(_paths(self.root))
        leaves = difflib.get_close_matches(key, [path.rpartition(".")[2] for path in paths], n=1, cutoff=0.8)
        for path in paths:
            if leaves and path.rpartition(".")[2] == leaves[0]:
                return f"did you mean {path}?"
        return (
            "the keys here are " + ", ".join(siblings) if siblings else "nothing can be set here; delete it"
        )


def plain(message: Message) -> dict[str, Any]:
    """Returns the set fields of a message as a job file has them: the inverse of `Reading.fill`."""
    return {known.name: _plain_field(known, value) for known, value in message.ListFields()}


def _plain_field(known: FieldDescriptor, value: Any) -> Any:
    if known.message_type is not None and known.message_type.GetOptions().map_entry:
        return dict(sorted(value.items()))
    if known.is_repeated:
        return [_plain_value(known, item) for item in value]
    return _plain_value(known, value)


def _plain_value(known: FieldDescriptor, value: Any) -> Any:
    if known.enum_type is not None:
        return names.short(known.enum_type, value).lower()
    if known.message_type is None:
        return value
    if known.message_type.full_name == _DURATION:
        return value.ToNanoseconds() / 1e9
    return plain(value)


def shown(value: object) -> str:
    """Returns a value as the user would have written it, shortened."""
    text = {"True": "true", "False": "false", "None": "nothing"}.get(str(value), str(value))
    return text if len(text) <= 100 else text[:97] + "..."


def _fields(message: Message) -> Mapping[str, FieldDescriptor]:
    return cast(Mapping[str, FieldDescriptor], message.DESCRIPTOR.fields_by_name)


def _rival(message: Message, known: FieldDescriptor) -> str:
    """Returns the field that is set already in the `oneof` of `known`, or nothing."""
    group = known.containing_oneof
    return (message.WhichOneof(group.name) or "") if group is not None and len(group.fields) > 1 else ""


def _of(prefix: str) -> str:
    return f"of {prefix.rstrip('.')}" if prefix else "of a job file"


def _remedy_mapping(message: Message) -> str:
    some = ", ".join(list(_fields(message))[:4])
    return f"give keys such as {some}" if some else "write {}"


def _paths(descriptor: Descriptor, prefix: str = "") -> Iterator[str]:
    for known in descriptor.fields:
        yield prefix + known.name
        nested = known.message_type
        if nested is not None and nested.file.package == descriptor.file.package and not known.is_repeated:
            yield from _paths(nested, f"{prefix}{known.name}.")


def _scalar(known: FieldDescriptor, value: Any) -> Any:
    """Returns `value` as the field takes it, or raises _Wrong."""
    if value is None:
        raise _Wrong("has no value", "give a value, or delete the line for the default")
    kind = known.cpp_type
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _enum(known, value)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _typed(value, bool, "true or false")
    if kind in _INTEGERS:
        return _integer(value, *_INTEGERS[kind])
    if kind in _FLOATS:
        return float(_number(value))
    assert kind == FieldDescriptor.CPPTYPE_STRING, f"{known.full_name} has a type that job files do not know"
    return _typed(value, str, "a text", f'put it in quotes: "{shown(value)}"')


def _typed(value: Any, kind: type, expected: str, remedy: str = "") -> Any:
    if not isinstance(value, kind):
        raise _Wrong(f"is not {expected}", remedy if isinstance(value, bool | int | float) else "")
    return value


def _enum(known: FieldDescriptor, value: Any) -> int:
    enum = known.enum_type
    assert enum is not None, "only called for enums"
    number = names.value_of(enum, value) if isinstance(value, str) else None
    if not number:
        options = names.choices(enum)
        near = difflib.get_close_matches(str(value).lower(), options, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise _Wrong(f"is no {_spaced(enum.name)}", f"{hint}the choice is {', '.join(options)}")
    return number


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Wrong("is not a number", "write it without quotes or units, for example 0.0002 or 2e-4")
    return value


def _integer(value: Any, least: int, most: int) -> int:
    number = _number(value)
    # 1e6 is a float in YAML and a fine number of steps.
    if not math.isfinite(number) or number != int(number):
        raise _Wrong("is not a whole number")
    if not least <= number <= most:
        raise _Wrong(f"must be at least {least}" if number < least else f"must be at most {most}")
    return int(number)


def _set_duration(message: Any, value: Any) -> None:
    match = _DURATION_TEXT.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        seconds = float(match[1]) * _UNIT_SECONDS[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9:
        seconds = float(value)
    else:
        raise _Wrong("is not a time", "write seconds, or a number with ms, s, m or h, for example 10s")
    message.FromNanoseconds(round(seconds * 1e9))
