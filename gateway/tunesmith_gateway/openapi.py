"""OpenAPI 3.1 from the contract: paths from the REST options, schemas and prose from its comments."""

import json
import re
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor import FieldDescriptor as F

from tunesmith import __version__
from tunesmith.validation import limits_of
from tunesmith_gateway import transcode
from tunesmith_gateway.prose import comments

_INTEGERS = {F.TYPE_INT32, F.TYPE_UINT32, F.TYPE_SINT32, F.TYPE_FIXED32, F.TYPE_SFIXED32}
_LONGS = {F.TYPE_INT64, F.TYPE_UINT64, F.TYPE_SINT64, F.TYPE_FIXED64, F.TYPE_SFIXED64}
_WELL_KNOWN = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$"},
    "google.protobuf.FieldMask": {"type": "string", "description": "Paths of fields, with commas between."},
}


@cache
def document(services: tuple[str, ...]) -> bytes:
    """Returns the document as JSON."""
    schemas: dict[str, Any] = {"Problem": _PROBLEM}
    paths: dict[str, Any] = {}
    for route in transcode.routes(services):
        paths.setdefault(_path(route.rpc.http_path), {})[route.rpc.http_method.lower()] = _operation(
            route, schemas
        )
    content = {
        "openapi": "3.1.0",
        "info": {"title": "Tunesmith", "version": __version__, "description": "Fine-tune language models."},
        "servers": [{"url": "/api/v1"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
    return json.dumps(content, separators=(",", ":")).encode()


_PROBLEM = {
    "type": "object",
    "description": "What went wrong (RFC 9457).",
    "required": ["title", "status", "detail", "reason"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "reason": {"type": "string", "description": "Stable word for programs."},
        "field": {"type": "string"},
        "value": {"type": "string"},
        "remedy": {"type": "string"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}


def _path(http_path: str) -> str:
    """Returns a path with one parameter a part: `projects/{project}/jobs/{job}:cancel`."""

    def expand(match: re.Match[str]) -> str:
        if match.group(2) is None:
            return "{" + match.group(1) + "}"
        parts = match.group(2).split("/")
        named = [
            "{" + parts[i - 1].removesuffix("s") + "}" if part == "*" else part
            for i, part in enumerate(parts)
        ]
        return "/".join(named)

    return "/" + transcode.VARIABLE.sub(expand, http_path)


def _operation(route: transcode.Route, schemas: dict[str, Any]) -> dict[str, Any]:
    rpc = route.rpc
    captured = [match.group(1) for match in transcode.VARIABLE.finditer(rpc.http_path)]
    fields, fields_by_name = rpc.descriptor.input_type.fields, rpc.descriptor.input_type.fields_by_name
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", _path(rpc.http_path))
    ]
    if rpc.http_body != "*":
        parameters += [
            _parameter(f, schemas) for f in fields if f.name not in captured and transcode.is_parameter(f)
        ]
    answer = _reference(rpc.descriptor.output_type, schemas)
    media = "text/event-stream" if rpc.server_streaming else "application/json"
    if transcode.is_file(rpc):
        media, answer = "application/octet-stream", {"type": "string", "format": "binary"}
    operation: dict[str, Any] = {
        "operationId": rpc.descriptor.name,
        "summary": rpc.descriptor.name,
        "description": comments().get(rpc.descriptor.full_name, ""),
        "tags": [rpc.descriptor.containing_service.name],
        "parameters": parameters,
        "responses": {
            "200": {"description": "Answer.", "content": {media: {"schema": answer}}},
            "default": {
                "description": "Error.",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
        "x-permission": rpc.permission,
    }
    if rpc.http_method == "GET" and not rpc.server_streaming:
        _add_etag(operation)
    if rpc.http_body:
        whole = rpc.http_body == "*"
        filled = rpc.descriptor.input_type if whole else fields_by_name[rpc.http_body].message_type
        assert filled is not None, "a body fills a message"
        body = {"application/json": {"schema": _reference(filled, schemas)}}
        operation["requestBody"] = {"content": body}
    return operation


def _add_etag(operation: dict[str, Any]) -> None:
    """Describes the conditional GET."""
    tag = {
        "schema": {"type": "string"},
        "description": "The resource's revision, if it has one, and a digest.",
    }
    operation["parameters"].append(
        {"name": "If-None-Match", "in": "header", "description": "An ETag that is known already.",
         "schema": {"type": "string"}}
    )  # fmt: skip
    operation["responses"]["200"]["headers"] = {"ETag": tag}
    operation["responses"]["304"] = {"description": "Nothing changed.", "headers": {"ETag": tag}}


def _parameter(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    description = comments().get(field.full_name, "")
    return {"name": field.name, "in": "query", "description": description, "schema": _schema(field, schemas)}


def _reference(message: Descriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    if message.full_name in _WELL_KNOWN:
        return dict(_WELL_KNOWN[message.full_name])
    name = message.full_name.removeprefix("tunesmith.api.")
    if name not in schemas:
        schemas[name] = {}
        schemas[name] = {
            "type": "object",
            "description": comments().get(message.full_name, ""),
            "properties": {
                f.name: {**_schema(f, schemas), "description": comments().get(f.full_name, "")}
                for f in message.fields
            },
        }
    return {"$ref": f"#/components/schemas/{name}"}


def _schema(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {
            "type": "object",
            "additionalProperties": _single(field.message_type.fields_by_name["value"], schemas),
        }
    single = _single(field, schemas)
    return {"type": "array", "items": single} if field.is_repeated else single


def _single(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        return _reference(field.message_type, schemas)
    if field.enum_type is not None:
        return _enum(field.enum_type)
    schema: dict[str, Any] = {"type": "string"}
    if field.type == F.TYPE_BOOL:
        schema = {"type": "boolean"}
    elif field.type in _INTEGERS:
        schema = {"type": "integer", "format": "int32"}
    elif field.type in _LONGS:
        schema = {"type": ["string", "integer"], "format": "int64"}
    elif field.type in (F.TYPE_DOUBLE, F.TYPE_FLOAT):
        schema = {"anyOf": [{"type": "number"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}]}
    limits = limits_of(field)
    if limits is not None and limits.pattern and not field.is_repeated:
        # Fields without presence are always there: what may be left out is then empty.
        may_be_empty = not limits.required or len(limits.unless) > 0
        schema["pattern"] = f"^({limits.pattern}){'?' if may_be_empty else ''}$"
    return schema


def _enum(enum: EnumDescriptor) -> dict[str, Any]:
    return {
        "type": "string",
        "enum": [value.name for value in enum.values],
        "description": comments().get(enum.full_name, ""),
    }
