"""The comments of the contract, which are the prose of OpenAPI and of the job file's schema."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2


@cache
def comments() -> dict[str, str]:
    """Returns the comments of the contract by full name; descriptors in memory have lost them."""
    data = (files("tunesmith.api") / "contract.binpb").read_bytes()
    found: dict[str, str] = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        for location in file.source_code_info.location:
            if location.leading_comments:
                found[_named(file, location.path)] = " ".join(location.leading_comments.split())
    return found


def _named(file: descriptor_pb2.FileDescriptorProto, path: Sequence[int]) -> str:
    """Returns the full name of what a source path leads to; empty for options and the like."""
    node: Any = file
    parts = [file.package]
    for number, index in zip(path[::2], path[1::2], strict=False):
        field = node.DESCRIPTOR.fields_by_number.get(number)
        if field is None or not field.is_repeated:
            return ""
        node = getattr(node, field.name)[index]
        parts.append(node.name)
    return ".".join(parts)
