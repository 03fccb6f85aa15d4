"""The contract as its committed descriptors tell it: services, messages and the comments beside them."""

from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import EnumDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from tunesmith.api.gateway.v1 import fleet_pb2, quotes_pb2
from tunesmith.api.jobs.v1 import external_pb2, jobs_pb2
from tunesmith.api.metrics.v1 import alerts_pb2, metrics_pb2, records_pb2, trace_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.api.registry.v1 import (
    blobs_pb2,
    cards_pb2,
    chat_pb2,
    datasets_pb2,
    derivations_pb2,
    evaluations_pb2,
    exports_pb2,
    lineage_pb2,
    models_pb2,
    prompts_pb2,
    search_pb2,
    stages_pb2,
    statistics_pb2,
    versions_pb2,
)

SERVED = (
    jobs_pb2,
    external_pb2,
    nodes_pb2,
    datasets_pb2,
    statistics_pb2,
    derivations_pb2,
    prompts_pb2,
    models_pb2,
    versions_pb2,
    stages_pb2,
    cards_pb2,
    lineage_pb2,
    search_pb2,
    exports_pb2,
    evaluations_pb2,
    chat_pb2,
    blobs_pb2,
    metrics_pb2,
    records_pb2,
    alerts_pb2,
    trace_pb2,
    fleet_pb2,
    quotes_pb2,
)
Place = tuple[int, ...]


def services() -> list[ServiceDescriptor]:
    """Returns every service of the contract."""
    found = [service for module in SERVED for service in module.DESCRIPTOR.services_by_name.values()]
    declared = {f"{file.package}.{service.name}" for file in proto_files() for service in file.service}
    assert {service.full_name for service in found} == declared, "a service is missing in SERVED"
    return found


def rpcs() -> list[MethodDescriptor]:
    """Returns every rpc of the contract."""
    return [method for service in services() for method in service.methods]


def comment(full_name: str) -> str:
    """Returns the comment of a message, field, enum value or rpc, as one line."""
    return _comments()[full_name]


def values(enum: EnumDescriptor) -> Iterator[tuple[str, int, str]]:
    """Yields (name, number, comment) of an enum's values but the unspecified one."""
    for value in enum.values:
        if value.number:
            yield value.name, value.number, comment(f"{enum.full_name}.{value.name}")


def proto_files() -> list[FileDescriptorProto]:
    """Returns the contract's files as they were compiled."""
    raw = (files("tunesmith.api") / "contract.binpb").read_bytes()
    every = descriptor_pb2.FileDescriptorSet.FromString(raw).file
    return [file for file in every if file.package.startswith("tunesmith.api.")]


@cache
def _comments() -> dict[str, str]:
    return {name: text for file in proto_files() for name, text in _of_file(file)}


def _of_file(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    told = {
        tuple(item.path): " ".join(item.leading_comments.split()) for item in file.source_code_info.location
    }
    for name, place in _places(file):
        yield name, told.get(place, "")


def _places(file: FileDescriptorProto) -> Iterator[tuple[str, Place]]:
    """Yields names and their paths as `SourceCodeInfo` numbers them: fields 4, 5 and 6 of a file."""
    for index, message in enumerate(file.message_type):
        yield from _of_message(f"{file.package}.{message.name}", message, (4, index))
    for index, enum in enumerate(file.enum_type):
        name = f"{file.package}.{enum.name}"
        yield name, (5, index)
        yield from ((f"{name}.{value.name}", (5, index, 2, at)) for at, value in enumerate(enum.value))
    for index, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield name, (6, index)
        yield from ((f"{name}.{method.name}", (6, index, 2, at)) for at, method in enumerate(service.method))


def _of_message(name: str, message: DescriptorProto, place: Place) -> Iterator[tuple[str, Place]]:
    yield name, place
    for index, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*place, 2, index)
    for index, nested in enumerate(message.nested_type):
        if nested.options.map_entry:  # made by the compiler, where nobody can comment it
            continue
        yield from _of_message(f"{name}.{nested.name}", nested, (*place, 3, index))
