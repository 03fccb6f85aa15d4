"""Copies an exported folder to an object store or a shared disk, through fsspec."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tunesmith.errors import AlreadyExists, FailedPrecondition, InvalidArgument, Unavailable
from tunesmith.proof import MANIFEST

# Places that hold files and take no commands; `memory` is fsspec's own, for tests.
SCHEMES = ("s3", "gs", "abfs", "az", "file", "memory")


def put(folder: Path, url: str, on_progress: Callable[[int, int], None] | None = None) -> str:
    """Copies a folder below `url`, the manifest last, so a copy with a manifest is whole. Blocks.

    Raises:
        InvalidArgument: the address is none of the known kinds.
        AlreadyExists: something is there.
        FailedPrecondition: what was written has another size.
        Unavailable: the place cannot be used.
    """
    check(url)
    try:
        store, root = _opened(url)
        if store.exists(root) and store.find(root):
            raise AlreadyExists(
                "NAME_TAKEN",
                "something is there already",
                field="url",
                value=url,
                remedy="give a new address",
            )
        files = sorted((path for path in folder.rglob("*") if path.is_file()), key=_manifest_last)
        total, done = sum(path.stat().st_size for path in files), 0
        for path in files:
            _put_file(store, path, f"{root.rstrip('/')}/{path.relative_to(folder).as_posix()}")
            done += path.stat().st_size
            if on_progress is not None:
                on_progress(done, total)
    except (OSError, ValueError) as error:
        raise Unavailable(
            "SOURCE_UNAVAILABLE",
            f"the place cannot be used: {str(error).partition(chr(10))[0][:300] or type(error).__name__}",
            field="url",
            value=url,
            remedy="check the address and its credentials, then try again with another folder",
        ) from None
    return url


def check(url: str) -> None:
    """Raises InvalidArgument when nothing is pushed to such an address."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or "@" in parts.netloc or parts.query or ".." in parts.path.split("/"):
        raise InvalidArgument(
            "URL_REFUSED",
            "a model is not pushed to such an address",
            field="url",
            value=url,
            remedy="write hf:ORG/NAME, or an address with s3://, gs://, abfs:// or file://; credentials "
            "belong into the environment",
        )


def _opened(url: str) -> tuple[Any, str]:
    try:
        store, root = importlib.import_module("fsspec.core").url_to_fs(url)
    except ImportError as error:
        raise Unavailable(
            "PROGRAM_MISSING", f"a library is missing: {error}", field="url", value=url,
            remedy="pip install fsspec, and s3fs for S3",
        ) from None  # fmt: skip
    return store, str(root)


def _manifest_last(path: Path) -> tuple[bool, str]:
    return path.name == MANIFEST, str(path)


def _put_file(store: Any, path: Path, to: str) -> None:
    store.makedirs(to.rpartition("/")[0], exist_ok=True)
    store.put_file(str(path), to)
    store.invalidate_cache()
    size = int(store.info(to)["size"])
    if size != path.stat().st_size:
        raise FailedPrecondition(
            "DIGEST_MISMATCH", f"{path.name} has {size} bytes there", field="url", value=to,
            remedy="delete it there and push again",
        )  # fmt: skip
