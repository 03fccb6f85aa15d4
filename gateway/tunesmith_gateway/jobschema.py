"""JSON Schema of the job file, from the contract: what a form or an editor needs to help who writes one.

The keys, short values and times are those of the YAML file (`cosine`, `10s`), not of proto JSON.
"""

import json
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.descriptor import FieldDescriptor as F

from tunesmith import names
from tunesmith.api.common.v1 import options_pb2
from tunesmith.api.jobs.v1 import spec_pb2
from tunesmith.validation import limits_of
from tunesmith_gateway.prose import comments

_DURATION = "google.protobuf.Duration"
_TIME = {"type": ["string", "number"], "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$", "format": "time-span"}
_BOUNDS = {"min": "minimum", "max": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}
_UNSIGNED = (F.CPPTYPE_UINT32, F.CPPTYPE_UINT64)
_KINDS = {
    F.CPPTYPE_BOOL: "boolean",
    F.CPPTYPE_STRING: "string",
    F.CPPTYPE_DOUBLE: "number",
    F.CPPTYPE_FLOAT: "number",
}


@cache
def document() -> bytes:
    """Returns the schema as JSON."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Tunesmith job file"}
    content = {**head, **_message(spec_pb2.JobSpec.DESCRIPTOR)}
    return json.dumps(content, separators=(",", ":")).encode()


def _message(message: Descriptor) -> dict[str, Any]:
    always = [field.name for field in message.fields if _limits(field).required and not _limits(field).unless]
    schema: dict[str, Any] = {
        "type": "object",
        "description": _told(message.full_name),
        "additionalProperties": False,
        "properties": {field.name: _field(field) for field in message.fields},
    }
    if always:
        schema["required"] = always
    if any(len(group.fields) > 1 for group in message.oneofs):
        schema["maxProperties"] = 1
    return schema


def _field(field: F) -> dict[str, Any]:
    limits, schema = _limits(field), _single(field)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        schema = {
            "type": "object",
            "additionalProperties": _single(field.message_type.fields_by_name["value"]),
        }
        if limits.key_pattern:
            schema["propertyNames"] = {"pattern": f"^({limits.key_pattern})$"}
    elif field.is_repeated:
        schema = {"type": "array", "items": schema}
        if limits.max_items:
            schema["maxItems"] = limits.max_items
    # A message's own words say what is in it, the field's what it is for.
    schema["description"] = _told(field.full_name) or schema.get("description", "")
    if limits.remedy:
        schema["x-remedy"] = limits.remedy
    if limits.required:
        schema["x-required"] = True
    return schema


def _single(field: F) -> dict[str, Any]:
    if field.message_type is not None:
        return dict(_TIME) if field.message_type.full_name == _DURATION else _message(field.message_type)
    if field.enum_type is not None:
        return _enum(field.enum_type)
    schema: dict[str, Any] = {"type": _KINDS.get(field.cpp_type, "integer")}
    limits = _limits(field)
    if field.cpp_type in _UNSIGNED:
        schema["minimum"] = 0
    for declared, bound in limits.ListFields():
        if key := _BOUNDS.get(declared.name):
            schema[key] = int(bound) if bound == int(bound) else bound
    if limits.pattern:
        schema["pattern"] = f"^({limits.pattern})$"
    if limits.max_length:
        schema["maxLength"] = limits.max_length
    return schema


def _enum(enum: EnumDescriptor) -> dict[str, Any]:
    options = [
        {
            "const": names.short(enum, value.number).lower(),
            "description": _told(f"{enum.full_name}.{value.name}"),
        }
        for value in enum.values
        if value.number
    ]
    return {"type": "string", "oneOf": options}


def _limits(field: F) -> options_pb2.Limits:
    return limits_of(field) or options_pb2.Limits()


def _told(full_name: str) -> str:
    return comments().get(full_name, "")
