"""What the contract says of each rpc: permission and REST route, read from the descriptors."""

from dataclasses import dataclass
from functools import lru_cache

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tunesmith.api.common.v1 import options_pb2

# Anybody may ask these: they tell nothing of jobs or people. Health probes carry no token.
OPEN_SERVICES = ("grpc.health.v1.Health",)


@dataclass(frozen=True)
class Rpc:
    """An rpc of the contract. `path` is `/{service}/{method}`."""

    path: str
    permission: str
    http_method: str
    http_path: str
    http_body: str
    client_streaming: bool
    server_streaming: bool
    request: type[Message]
    response: type[Message]
    descriptor: MethodDescriptor


@lru_cache(maxsize=1024)
def find(path: str) -> Rpc | None:
    """Returns the rpc of a gRPC path, or None when no loaded contract knows it."""
    service, _, method = path.strip("/").rpartition("/")
    try:
        found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
    except KeyError:
        return None
    return describe(found)


@lru_cache(maxsize=1024)
def mutates(path: str) -> bool:
    """Whether an rpc changes something that a person asked for: it takes a request id, and is none of the
    calls that agents and programs make again and again (reports, renewals, points)."""
    rpc = find(path)
    if rpc is None or "request_id" not in rpc.descriptor.input_type.fields_by_name:
        return False
    often = rpc.descriptor.name.startswith(("Renew", "Report", "Write"))
    return rpc.permission != "nodes.report" and not often


def describe(method: MethodDescriptor) -> Rpc:
    """Returns what the contract says of a method."""
    options = method.GetOptions()
    access = options.Extensions[options_pb2.access]
    return Rpc(
        path=f"/{method.containing_service.full_name}/{method.name}",
        permission=access.permission,
        http_method=access.http_method,
        http_path=access.http_path,
        http_body=access.http_body,
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        descriptor=method,
    )
