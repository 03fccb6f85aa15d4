"""Pictures as programs have them: files, bytes, figures of plotting libraries, arrays of pixels."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.blobs import unreadable
from tunesmith.logged import wrong

_MOST_BYTES = 16 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
_COLOURS = {1: 0, 3: 2, 4: 6}  # PNG's colour types by the number of channels: grey, RGB, RGBA


@dataclass(frozen=True)
class Picture:
    """The bytes of a PNG, JPEG or WebP file. Width and height are 0 where they are not known."""

    data: bytes
    media_type: str
    width: int = 0
    height: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes."""
        return hashlib.sha256(self.data).hexdigest()


def picture_of(image: Any) -> Picture:
    """Returns what a program calls a picture: a path, the bytes of a file, whatever can `save` or `savefig`
    itself as PNG, or an array of uint8 shaped (height, width) or (height, width, channels) with 1, 3 or 4.

    Raises:
        InvalidArgument: it is none of these, no picture, or larger than 16 MiB.
    """
    data = _bytes_of(image)
    if len(data) > _MOST_BYTES:
        raise wrong("image", len(data), "is larger than 16 MiB", "log it smaller, or save it as a checkpoint")
    if data.startswith(_PNG) and len(data) > 24:
        width, height = struct.unpack(">II", data[16:24])
        return Picture(data, "image/png", width, height)
    if data.startswith(b"\xff\xd8\xff"):
        return Picture(data, "image/jpeg")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Picture(data, "image/webp")
    raise wrong("image", data[:8], "is no picture", "log a PNG, JPEG or WebP file")


def _bytes_of(image: Any) -> bytes:
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise unreadable(Path(image), error) from None
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if hasattr(image, "detach"):  # a tensor
        image = image.detach().cpu().numpy()
    buffer = io.BytesIO()
    if hasattr(image, "savefig"):
        image.savefig(buffer, format="png")
    elif hasattr(image, "save"):
        image.save(buffer, format="PNG")
    elif hasattr(image, "shape") and hasattr(image, "tobytes"):
        return _png(image)
    else:
        problem, remedy = "is no picture", "log a path, bytes, a figure or an array of uint8"
        raise wrong("image", type(image).__name__, problem, remedy)
    return buffer.getvalue()


def _png(array: Any) -> bytes:
    shape = tuple(int(size) for size in array.shape)
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in _COLOURS or not all(shape):
        problem, remedy = "has not the shape of a picture", "give (height, width) or with 1, 3 or 4 channels"
        raise wrong("image", shape, problem, remedy)
    if str(array.dtype) != "uint8":
        raise wrong("image", str(array.dtype), "has other numbers than uint8", "scale them to 0..255 first")
    height, width = shape[:2]
    pixels, row = array.tobytes(), width * channels
    # Each row begins with its filter: 0 is none.
    rows = b"".join(b"\0" + pixels[at : at + row] for at in range(0, height * row, row))
    head = struct.pack(">IIBBBBB", width, height, 8, _COLOURS[channels], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 6)), (b"IEND", b""))
    return _PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
