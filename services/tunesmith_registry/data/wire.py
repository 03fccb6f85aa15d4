"""BlobService as it is served: messages that hold nothing but bytes are read and written in one copy less.

What protobuf does with such a message is copy its bytes, twice: a third of the work of an upload.
"""

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from tunesmith.api.registry.v1 import blobs_pb2, blobs_pb2_grpc

_CHUNK_OF_PART, _CHUNK_OF_DOWNLOAD = 3 << 3 | 2, 1 << 3 | 2  # number of the field, and "bytes" follow


@dataclass(frozen=True, slots=True)
class Chunk:
    """A message whose only field is `chunk`."""

    chunk: memoryview | bytes
    upload: str = ""
    offset: int = 0


def add_to_server(servicer: blobs_pb2_grpc.BlobServiceServicer, server: grpc.aio.Server) -> None:
    """Registers the service as its generated code would, but for the two rpcs that move most bytes."""
    generated = _Recorded()
    blobs_pb2_grpc.add_BlobServiceServicer_to_server(servicer, generated)  # type: ignore[arg-type]
    handlers = {
        **generated.handlers,
        "UploadPart": grpc.stream_unary_rpc_method_handler(
            servicer.UploadPart, read_part, blobs_pb2.UploadPartResponse.SerializeToString
        ),
        "DownloadBlob": grpc.unary_stream_rpc_method_handler(
            servicer.DownloadBlob, blobs_pb2.DownloadBlobRequest.FromString, write_download
        ),
    }
    name = blobs_pb2.DESCRIPTOR.services_by_name["BlobService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))


class _Recorded:
    """Stands for a server while generated code registers its handlers."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Not needed: the same handlers come by name."""

    def add_registered_method_handlers(self, name: str, handlers: dict[str, Any]) -> None:
        """Keeps the handlers."""
        self.handlers = handlers


def read_part(data: bytes) -> Chunk | blobs_pb2.UploadPartRequest:
    """An UploadPartRequest; of one with `chunk` alone the bytes stay where they are."""
    begin = _begin(data, _CHUNK_OF_PART)
    return Chunk(memoryview(data)[begin:]) if begin else blobs_pb2.UploadPartRequest.FromString(data)


def write_download(message: Chunk | Message) -> bytes:
    """A DownloadBlobResponse on the wire."""
    if isinstance(message, Message):
        return message.SerializeToString()
    size, head = len(message.chunk), bytearray([_CHUNK_OF_DOWNLOAD])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + message.chunk


def _begin(data: bytes, tag: int) -> int:
    """Where the bytes of the one field begin; 0 when the message is anything else."""
    if not data or data[0] != tag:
        return 0
    size = 0
    for index in range(1, min(6, len(data))):
        size |= (data[index] & 0x7F) << 7 * (index - 1)
        if data[index] < 0x80:
            return index + 1 if index + 1 + size == len(data) else 0
    return 0
