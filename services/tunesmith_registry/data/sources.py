"""Where rows come from: an upload, a shared folder, an address, a hub. Nothing from outside unchecked."""

import fnmatch
import http.client
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, urljoin, urlsplit

from tunesmith.api.registry.v1 import datasets_pb2
from tunesmith.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from tunesmith_kit.blobs import BlobStore, disk, missing

_SECONDS = 30.0
_CHUNK = 1024 * 1024
_MOST_REDIRECTS = 5
_MOST_FILES = 10_000
_DATA_FILES = (".arrow", ".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")


@dataclass(frozen=True, slots=True)
class Opened:
    """A file to read rows from; `open` may be called again."""

    size_bytes: int
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class Source:
    """The files of an import, in their order, and what to call them."""

    files: list[Opened]
    label: str = ""


@dataclass(frozen=True, slots=True)
class Doors:
    """From where the registry may read: folders, addresses, a hub; and how much."""

    roots: tuple[Path, ...] = ()
    urls: tuple[str, ...] = ()
    hub_url: str = ""
    max_bytes: int = 1 << 40


Tell = Callable[[int, int], None]
"""Hears (bytes fetched, bytes in all or 0)."""


@contextmanager
def opened(
    store: BlobStore, doors: Doors, request: datasets_pb2.ImportDatasetRequest, tell: Tell
) -> Iterator[Source]:
    """The source a request names; what had to be fetched is deleted at the end."""
    with ExitStack() as closing:
        if request.path:
            yield shared(doors.roots, request.path)
        elif request.url:
            file = scratch(store, closing)
            fetch(doors, request.url, file, tell)
            yield Source([_local(file)], request.url)
        elif request.HasField("hub"):
            yield _hub(store, doors, request.hub, tell, closing)
        else:
            yield uploaded(store, request.source_digest)


def uploaded(store: BlobStore, digest: str) -> Source:
    """What was uploaded under a digest; `NotFound` when nothing was."""
    blob = store.stat(digest)
    if blob is None:
        raise missing(digest)
    return Source([Opened(blob.size_bytes, lambda: store.read(digest))])


def scratch(store: BlobStore, closing: ExitStack) -> Path:
    """A temporary file beside the store's content."""
    path = store.scratch()
    closing.callback(path.unlink, missing_ok=True)
    return path


def _local(path: Path) -> Opened:
    return Opened(path.stat().st_size, lambda: path.open("rb"))


def shared(roots: tuple[Path, ...], given: str) -> Source:
    """A file, or the data files of a folder, below one of the shared roots.

    Raises:
        InvalidArgument: the path leaves the roots, by its parts or by a symbolic link, or there are none.
        NotFound: there is no such file.
    """
    parts = Path(given).parts
    if not roots:
        raise FailedPrecondition(
            "SOURCE_CLOSED",
            "this registry reads no shared folders",
            field="path",
            value=given,
            remedy="upload the file, or ask the operator to set import_roots",
        )
    if "\x00" in given or "\\" in given or ".." in parts:
        raise _outside(given)
    for root in roots:
        found = _below(root, given)
        if found is not None:
            files = _files_of(found)
            return Source([_local(path) for path in files], given)
    raise NotFound(
        "SOURCE_NOT_FOUND",
        "there is no such file below the shared folders",
        field="path",
        value=given,
        remedy="give a path below one of the registry's shared folders",
    )


def _below(root: Path, given: str) -> Path | None:
    base = root.resolve()
    try:
        found = (base / given).resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        return None
    if not found.is_relative_to(base):
        raise _outside(given)
    return found


def _outside(given: str) -> InvalidArgument:
    return InvalidArgument(
        "PATH_OUTSIDE",
        "the path leaves the shared folders",
        field="path",
        value=given,
        remedy="give a path below one of the registry's shared folders, without .. and links to elsewhere",
    )


def _files_of(found: Path) -> list[Path]:
    """The file itself; of a folder its data files, of a folder of splits those of `train`."""
    if found.is_file():
        return [found]
    folder = found
    if (found / "dataset_dict.json").is_file() and (found / "train").is_dir():
        folder = found / "train"
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in _DATA_FILES and path.is_file() and not path.is_symlink()
        and path.name not in ("dataset_info.json", "state.json", "dataset_dict.json")
    )  # fmt: skip
    if not files or len({path.suffix for path in files}) > 1:
        raise InvalidArgument(
            "SOURCE_AMBIGUOUS",
            "the folder has no data files, or files of several formats",
            field="path",
            value=found.name,
            remedy=f"name one file, or a folder with files of one format: {', '.join(_DATA_FILES)}",
        )
    return files[:_MOST_FILES]


def fetch(doors: Doors, url: str, to: Path, tell: Tell) -> None:
    """Fetches an address of the allow-list into a file; every redirect is checked as the first address was.

    Raises:
        InvalidArgument: the address is not allowed.
        ResourceExhausted: the answer is larger than it may be.
        Unavailable: the address does not answer, or with an error.
    """
    for _ in range(_MOST_REDIRECTS):
        parts, address = _allowed(doors.urls, url)
        with ExitStack() as closing:
            try:
                answer = _ask(parts, address, closing)
                if answer.status in (301, 302, 303, 307, 308):
                    url = urljoin(url, answer.getheader("location", ""))
                    continue
                _save(answer, url, to, doors.max_bytes, tell)
            except (OSError, http.client.HTTPException) as error:
                raise _unreachable(url, str(error) or type(error).__name__) from error
            return
    raise _unreachable(url, "too many redirects")


def _allowed(urls: tuple[str, ...], url: str) -> tuple[SplitResult, str]:
    """The parts of an allowed address, and the IP address to connect to, resolved once."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise _refused(url, f"it is no address: {error}") from error
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or "\\" in url:
        raise _refused(url, "only plain http and https addresses are fetched")
    if any(ord(char) < 33 for char in url):
        raise _refused(url, "it has white space or control characters")
    entry = next((entry for entry in urls if _matches(entry, parts)), None)
    if entry is None:
        raise _refused(url, f"{host} is not on the registry's list")
    try:
        found = {item[4][0] for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise _unreachable(url, f"{host} cannot be resolved") from error
    for address in found:
        if not _public(str(address)) and not _names_address(entry):
            raise _refused(url, f"{host} is at the private address {address}")
    return parts, str(min(found, key=lambda address: ":" in str(address)))


def _matches(entry: str, parts: SplitResult) -> bool:
    """Whether an entry, a host or the beginning of an address, covers an address."""
    if "://" not in entry:
        return (parts.hostname or "") == entry.lower()
    wanted = urlsplit(entry)
    same = (wanted.scheme, wanted.hostname, wanted.port) == (parts.scheme, parts.hostname, parts.port)
    base = wanted.path.rstrip("/") + "/"
    plain = ".." not in parts.path and "%" not in parts.path.replace("%20", "")
    return same and (base == "/" or (plain and parts.path.startswith(base)))


def _names_address(entry: str) -> bool:
    """Whether the operator listed an IP address itself, and so meant it."""
    host = (urlsplit(entry).hostname or "") if "://" in entry else entry
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_global and not found.is_multicast


def _ask(parts: SplitResult, address: str, closing: ExitStack) -> http.client.HTTPResponse:
    """Sends the request to the address that was checked, whatever the name means by now."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    connection = http.client.HTTPConnection(parts.hostname or "", port, timeout=_SECONDS)
    closing.callback(connection.close)
    plain = socket.create_connection((address, port), timeout=_SECONDS)
    closing.callback(plain.close)
    if parts.scheme == "https":
        plain = ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
        closing.callback(plain.close)
    connection.sock = plain
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", path, headers={"accept-encoding": "identity", "user-agent": "tunesmith"})
    answer = connection.getresponse()
    closing.callback(answer.close)
    return answer


def _save(answer: http.client.HTTPResponse, url: str, to: Path, most: int, tell: Tell) -> None:
    if answer.status != 200:
        raise _unreachable(url, f"it answers {answer.status} {answer.reason}")
    total = int(answer.getheader("content-length") or 0)
    _check_size(total, most, url)
    done = 0
    with disk(to.parent), to.open("xb") as file:
        while data := answer.read(_CHUNK):
            done += len(data)
            _check_size(done, most, url)
            file.write(data)
            tell(done, total)
    if done < total:
        raise _unreachable(url, f"it broke off after {done} of {total} bytes")


def _check_size(size: int, most: int, source: str) -> None:
    if size > most:
        raise ResourceExhausted(
            "DATASET_TOO_LARGE",
            f"the file is larger than {most} bytes",
            field="url",
            value=source,
            remedy="import it in parts, or ask the operator to raise import_max_bytes",
        )


def _refused(url: str, why: str) -> InvalidArgument:
    return InvalidArgument(
        "URL_REFUSED",
        f"this address is not fetched: {why}",
        field="url",
        value=url,
        remedy="download the file and upload it, or ask the operator to add the host to import_urls",
    )


def _unreachable(url: str, why: str) -> Unavailable:
    return Unavailable(
        "SOURCE_UNAVAILABLE", f"the source cannot be read: {why}", field="url", value=url,
        remedy="check that it can be reached from the registry, then try again",
    )  # fmt: skip


def _hub(
    store: BlobStore, doors: Doors, hub: datasets_pb2.HubSource, tell: Tell, closing: ExitStack
) -> Source:
    """The Parquet files of a data set on a hub; its scripts are not even downloaded."""
    if not doors.hub_url:
        raise FailedPrecondition(
            "SOURCE_CLOSED", "this registry reads from no hub", field="hub", value=hub.repo,
            remedy="upload the files, or ask the operator to set hub_url",
        )  # fmt: skip
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    api, revision = HfApi(endpoint=doors.hub_url, token=False), hub.revision or "main"
    label = f"{hub.repo}@{revision}"
    try:
        listed = api.list_repo_tree(hub.repo, repo_type="dataset", revision=revision, recursive=True)
        sizes = {entry.path: int(getattr(entry, "size", 0) or 0) for entry in listed}
        chosen = _chosen(sorted(path for path in sizes if path.endswith(".parquet")), hub)
        total, done = sum(sizes[path] for path in chosen), 0
        _check_size(total, doors.max_bytes, label)
        folder = store.scratch()
        closing.callback(_remove, folder)
        files = []
        for path in chosen:
            local = api.hf_hub_download(
                hub.repo, path, repo_type="dataset", revision=revision, local_dir=folder
            )
            files.append(_local(Path(local)))
            done += sizes[path]
            tell(done, total)
    except RepositoryNotFoundError as error:
        raise NotFound(
            "SOURCE_NOT_FOUND", "the hub has no such data set, or it is not public", field="hub.repo",
            value=hub.repo, remedy="check its name on the hub's page",
        ) from error  # fmt: skip
    except HFValidationError as error:
        raise InvalidArgument("FIELD_INVALID", str(error)[:300], field="hub.repo", value=hub.repo) from error
    except (HfHubHTTPError, OSError) as error:
        raise _unreachable(label, str(error).partition("\n")[0][:300]) from error
    return Source(files, label)


def _chosen(files: list[str], hub: datasets_pb2.HubSource) -> list[str]:
    wanted = [path for path in files if fnmatch.fnmatchcase(path, hub.files or "*")]
    if not hub.files:
        train = [path for path in wanted if "train" in path.rpartition("/")[2] or "/train/" in f"/{path}"]
        wanted = train or wanted
    if not wanted or len(wanted) > _MOST_FILES:
        raise InvalidArgument(
            "SOURCE_AMBIGUOUS", f"{len(wanted)} Parquet files are meant", field="hub.files", value=hub.files,
            remedy=f"its Parquet files: {', '.join(files[:10]) or 'none; convert it to Parquet first'}",
        )  # fmt: skip
    return wanted


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
