"""REST to messages and back: routes from the contract, JSON read strictly, query parameters by field type."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tunesmith import names
from tunesmith.errors import InvalidArgument, NotFound
from tunesmith_kit import access

VARIABLE = re.compile(r"\{([\w.]+)(?:=([^}]*))?\}")
_MOMENTS = {
    "google.protobuf.Timestamp": ("time", "2026-01-31T12:00:00Z"),
    "google.protobuf.Duration": ("duration", "90s"),
}
_MASK = "google.protobuf.FieldMask"
_DEEPEST = 64


@dataclass(frozen=True)
class Route:
    """One REST route: an rpc and the form of its path."""

    rpc: access.Rpc
    pattern: re.Pattern[str]


def routes(services: Iterable[str]) -> list[Route]:
    """Returns the REST routes of the services named, those with a verb (`:cancel`) first."""
    found = []
    for name in services:
        for method in descriptor_pool.Default().FindServiceByName(name).methods:
            rpc = access.describe(method)
            if rpc.http_method:
                found.append(Route(rpc, _compile(rpc.http_path)))
    return sorted(found, key=lambda route: ":" not in route.rpc.http_path)


def is_file(rpc: access.Rpc) -> bool:
    """Tells whether the answer in REST is a file: a stream of bytes with a media type in the first part."""
    fields = rpc.descriptor.output_type.fields_by_name
    return rpc.server_streaming and "data" in fields and "content_type" in fields


def _compile(path: str) -> re.Pattern[str]:
    pattern, at = "", 0
    for match in VARIABLE.finditer(path):
        form = match.group(2) or "*"
        inner = "/".join("[^/:]+" if part == "*" else re.escape(part) for part in form.split("/"))
        pattern += re.escape(path[at : match.start()]) + f"(?P<{_group(match.group(1))}>{inner})"
        at = match.end()
    return re.compile(pattern + re.escape(path[at:]))


def _group(name: str) -> str:
    """Returns the name of a capture: groups of regular expressions cannot have dots, `quota.name` has one."""
    return name.replace(".", "__")


def match(table: Sequence[Route], method: str, path: str) -> tuple[access.Rpc, dict[str, str]]:
    """Returns the rpc of a request and what its path captured.

    Raises:
        NotFound: no route has this method and path.
    """
    for route in table:
        if route.rpc.http_method == method and (found := route.pattern.fullmatch(path)):
            return route.rpc, {name.replace("__", "."): text for name, text in found.groupdict().items()}
    raise NotFound(
        "ROUTE_NOT_FOUND",
        f"there is no route {method} /api/v1/{path}",
        field="path",
        value=path,
        remedy="/api/v1/openapi.json lists the routes",
    )


def request_of(
    rpc: access.Rpc, captured: Mapping[str, str], query: Iterable[tuple[str, str]], body: bytes
) -> Message:
    """Builds the request message from path, query and body.

    Raises:
        InvalidArgument: a name is unknown or a value has the wrong type.
    """
    message = rpc.request()
    if rpc.http_body and body.strip():
        target = message if rpc.http_body == "*" else getattr(message, rpc.http_body)
        _fill(target, load_json(body))
    for name, text in query:
        _set(message, name, text)
    for name, text in captured.items():
        *parents, leaf = name.split(".")
        owner = message
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, leaf, text)
    return message


def to_json(message: Message) -> bytes:
    """Returns a message as JSON with the names of the contract and every field that has a default."""
    return json.dumps(
        json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        ),
        separators=(",", ":"),
        ensure_ascii=False,
    ).encode()


def etag(message: Message) -> str:
    """Returns the ETag of an answer: a digest, before it the revision of the one resource in it, if any."""
    fields = message.ListFields()
    revision = 0
    if len(fields) == 1 and fields[0][0].message_type is not None and not fields[0][0].is_repeated:
        revision = getattr(fields[0][1], "revision", 0)
    digest = hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()
    return f'"{revision}-{digest[:16]}"' if revision else f'"{digest[:32]}"'


def load_json(body: bytes) -> Any:
    """Reads JSON strictly: no NaN, no double keys, no bottomless nesting.

    Raises:
        InvalidArgument: the body is no such JSON.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                raise _bad(f"the key {key!r} stands twice")
            found[key] = value
        return found

    def constant(name: str) -> Any:
        raise _bad(f"{name} is not JSON")

    try:
        value = json.loads(body.decode("utf-8-sig"), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise _bad(f"the body is not JSON: {error}") from None
    if _depth(value) > _DEEPEST:
        raise _bad(f"the body is nested deeper than {_DEEPEST}")
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= _DEEPEST:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _bad(message: str) -> InvalidArgument:
    return InvalidArgument("MESSAGE_MALFORMED", message, field="body", remedy="send one JSON object")


def _fill(message: Message, value: Any) -> None:
    if not isinstance(value, dict):
        raise _bad("the body is not a JSON object")
    try:
        json_format.ParseDict(_with_masks(message, value), message, max_recursion_depth=_DEEPEST)
    except (json_format.ParseError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise InvalidArgument(
            "FIELD_INVALID", f"the body does not fit: {error}", field="body",
            remedy="/api/v1/openapi.json describes the fields",
        ) from None  # fmt: skip


def _with_masks(message: Message, value: dict[str, Any]) -> dict[str, Any]:
    """Returns the body with its field masks as protobuf's JSON wants them: the names in them in camelCase,
    though in bodies and masks alike we write those of the contract."""
    kinds = {field.name: field.message_type for field in message.DESCRIPTOR.fields}
    masks = [name for name, kind in kinds.items() if kind is not None and kind.full_name == _MASK]
    return {key: _camel(text) if key in masks else text for key, text in value.items()}


def _camel(mask: Any) -> Any:
    return re.sub(r"_([a-z0-9])", lambda m: m.group(1).upper(), mask) if isinstance(mask, str) else mask


def _set(message: Message, name: str, text: str) -> None:
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None or not is_parameter(field):
        known = ", ".join(sorted(f.name for f in message.DESCRIPTOR.fields if is_parameter(f)))
        raise InvalidArgument(
            "FIELD_INVALID", f"there is no parameter {name}", field=name, remedy=f"parameters: {known}"
        )
    try:
        if field.message_type is not None:
            getattr(message, name).FromJsonString(text)
            return
        value = _scalar(field, text)
        if field.is_repeated:
            getattr(message, name).append(value)
        else:
            setattr(message, name, value)
    except (KeyError, ValueError, OverflowError):
        if field.enum_type is not None:
            enum: Any = field.enum_type
            kind, remedy = enum.name, "one of " + ", ".join(names.choices(enum))
        elif field.message_type is not None:
            kind, example = _MOMENTS[field.message_type.full_name]
            remedy = f"it as {example}"
        else:
            kind = "boolean" if field.type == field.TYPE_BOOL else "number"
            remedy = f"a {kind}"
        raise InvalidArgument(
            "FIELD_INVALID", f"{name} is not a {kind}", field=name, value=text, remedy=f"give {remedy}"
        ) from None


def is_parameter(field: Any) -> bool:
    """Whether a field may stand in the query: what is one text in JSON."""
    if field.message_type is None:
        return True
    return field.message_type.full_name in _MOMENTS and not field.is_repeated


def _scalar(field: Any, text: str) -> Any:
    if field.enum_type is not None:
        if text.isdigit():
            return int(text)
        number = names.value_of(field.enum_type, text)
        if number is None:
            raise KeyError(text)
        return number
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return float(text)
    if field.type == FieldDescriptor.TYPE_STRING:
        return text
    return int(text)
