"""What is read and written past protobuf is what protobuf reads and writes."""

import pytest
from google.protobuf.message import DecodeError

from tunesmith.api.registry.v1 import blobs_pb2 as pb
from tunesmith_registry.data import wire

SIZES = (1, 127, 128, 16_383, 16_384, 1 << 20, (1 << 21) + 5)


@pytest.mark.parametrize("size", SIZES)
def test_messages_of_bytes_alone_are_the_same(size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    sent = pb.UploadPartRequest(chunk=content).SerializeToString()
    found = wire.read_part(sent)
    assert isinstance(found, wire.Chunk), "the short way"
    assert bytes(found.chunk) == content
    assert (
        wire.write_download(wire.Chunk(content)) == pb.DownloadBlobResponse(chunk=content).SerializeToString()
    )


def test_all_other_messages_go_through_protobuf() -> None:
    first = pb.UploadPartRequest(upload="a" * 26, offset=7, chunk=b"x" * 200)
    behind = pb.UploadPartRequest(chunk=b"x" * 200).SerializeToString() + b"\x10\x05"
    twice = (
        pb.UploadPartRequest(chunk=b"x").SerializeToString()
        + pb.UploadPartRequest(chunk=b"y").SerializeToString()
    )
    for data in (first.SerializeToString(), behind, twice, b""):
        assert wire.read_part(data) == pb.UploadPartRequest.FromString(data)
    whole = pb.UploadPartRequest(chunk=b"x" * 200).SerializeToString()
    for data in (whole[:-1], whole[:2], whole[:1], b"\x1a\xff\xff\xff\xff\xff\xff"):
        with pytest.raises(DecodeError):
            wire.read_part(data)
