"""Checks a message against the `limits` its fields declare in proto/.

The limits stand in the contract only. The command line uses this to name every wrong line of a job file
at once, and each server uses it before a handler runs. It is our own 100 lines instead of protovalidate,
because stubs for other languages must come from proto/ alone.
"""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from google.protobuf.message import Message

from tunesmith.api.common.v1 import options_pb2
from tunesmith.errors import Violation

_WRAPPED = ("google.protobuf.Timestamp", "google.protobuf.Duration")


def violations(message: Message, prefix: str = "") -> list[Violation]:
    """Returns every broken limit of `message` and of those in it, with paths like `spec.training.seed`."""
    return list(_walk(message, prefix))


@lru_cache(maxsize=4096)
def limits_of(field: Any) -> options_pb2.Limits | None:
    """Returns the limits a field declares, or None."""
    options = field.GetOptions()
    if not options.HasExtension(options_pb2.limits):
        return None
    found: options_pb2.Limits = options.Extensions[options_pb2.limits]
    return found


def _walk(message: Message, prefix: str, partial: bool = False) -> Iterator[Violation]:
    present = {field.name for field, _ in message.ListFields()}
    for field in message.DESCRIPTOR.fields:
        path = prefix + field.name
        value = getattr(message, field.name)
        limits = limits_of(field)
        if field.name not in present:
            lifted = partial or (limits is not None and not present.isdisjoint(limits.unless))
            if limits is not None and limits.required and not lifted:
                yield Violation(path, "", "is required", limits.remedy)
            continue
        if limits is not None:
            yield from _check(field, limits, path, value)
        yield from _descend(field, path, value, partial or (limits is not None and limits.partial))


def _descend(field: Any, path: str, value: Any, partial: bool) -> Iterator[Violation]:
    if field.message_type is None or field.message_type.full_name in _WRAPPED:
        return
    if field.message_type.GetOptions().map_entry:
        return
    if field.is_repeated:
        for index, item in enumerate(value):
            yield from _walk(item, f"{path}[{index}].", partial)
    else:
        yield from _walk(value, path + ".", partial)


def _check(field: Any, limits: options_pb2.Limits, path: str, value: Any) -> Iterator[Violation]:
    if field.is_repeated:
        if limits.max_items and len(value) > limits.max_items:
            yield Violation(
                path, str(len(value)), f"has more than {limits.max_items} elements", limits.remedy
            )
        if field.message_type is not None:
            if field.message_type.GetOptions().map_entry:
                yield from _check_map(limits, path, value)
            return
        for index, item in enumerate(value):
            yield from _check_one(limits, f"{path}[{index}]", item)
    elif field.message_type is None:
        yield from _check_one(limits, path, value)


def _check_map(limits: options_pb2.Limits, path: str, value: Any) -> Iterator[Violation]:
    for key, item in value.items():
        if limits.key_pattern and not re.fullmatch(limits.key_pattern, str(key)):
            problem = f"has a key that does not match {limits.key_pattern}"
            yield Violation(path, _shown(key), problem, limits.remedy)
        elif isinstance(item, str | int | float):
            yield from _check_one(limits, f"{path}[{key}]", item)


def _check_one(limits: options_pb2.Limits, path: str, value: Any) -> Iterator[Violation]:
    problem = ""
    if isinstance(value, str):
        problem = _text_problem(limits, value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        problem = _number_problem(limits, value)
    if problem:
        yield Violation(path, _shown(value), problem, limits.remedy)


def _text_problem(limits: options_pb2.Limits, value: str) -> str:
    if limits.max_length and len(value) > limits.max_length:
        return f"is longer than {limits.max_length} characters"
    if limits.pattern and not re.fullmatch(limits.pattern, value):
        return f"does not match {limits.pattern}"
    return ""


def _number_problem(limits: options_pb2.Limits, value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    if limits.HasField("above") and not value > limits.above:
        return f"must be greater than {limits.above:g}"
    if limits.HasField("min") and value < limits.min:
        return f"must be at least {limits.min:g}"
    if limits.HasField("below") and not value < limits.below:
        return f"must be less than {limits.below:g}"
    if limits.HasField("max") and value > limits.max:
        return f"must be at most {limits.max:g}"
    return ""


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."
