"""Reads metric segments as docs/run-folder.md has them.

Not with the agent's reader, so that the two check each other.
"""

import struct
import zlib
from collections.abc import Iterator

_MAGIC = b"TSMETR01"
_KEY, _STEP = 1, 2
_STEP_HEAD = struct.Struct("<QqqH")


def step_records(segment: bytes) -> Iterator[tuple[int, int, int, dict[str, float]]]:
    """Yields (seq, step, Unix time in microseconds, values) of the whole step records of a segment.

    A torn end is a write that never happened.
    """
    if len(segment) < len(_MAGIC):
        return  # just made
    assert segment.startswith(_MAGIC)
    at, keys = len(_MAGIC), dict[int, str]()
    while at + 8 <= len(segment):
        length, crc = struct.unpack_from("<II", segment, at)
        body = segment[at + 8 : at + 4 + length]
        if len(body) != length - 4 or zlib.crc32(body) != crc:
            return
        at += 4 + length
        if body[0] == _KEY:
            keys[struct.unpack_from("<H", body, 1)[0]] = body[3:].decode()
        elif body[0] == _STEP:
            seq, step, time_us, count = _STEP_HEAD.unpack_from(body, 1)
            start = 1 + _STEP_HEAD.size
            ids = struct.unpack_from(f"<{count}H", body, start)
            values = struct.unpack_from(f"<{count}d", body, start + 2 * count)
            yield seq, step, time_us, dict(zip((keys[i] for i in ids), values, strict=True))
