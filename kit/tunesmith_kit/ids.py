"""Ids: lower-case ULIDs, which sort by the time they were made (github.com/ulid/spec)."""

import os
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_lock = threading.Lock()
_last = 0


def new_ulid() -> str:
    """Returns a new id: 26 characters, larger than every id this process made before."""
    global _last
    with _lock:
        fresh = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10))
        _last = fresh if fresh > _last else _last + 1
        value = _last
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def short_suffix() -> str:
    """Returns four random characters for readable names; the store sees to uniqueness."""
    value = int.from_bytes(os.urandom(4))
    return "".join(_ALPHABET[value >> shift & 31] for shift in (0, 5, 10, 15))
