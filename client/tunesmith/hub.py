"""Models of a Hugging Face hub: fetched without anything that could run code, and pushed.

Needs the library `huggingface_hub`, which finds the token (`HF_TOKEN`, or its own file). `HF_ENDPOINT` says
where the hub is.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TunesmithError,
    Unavailable,
)

PREFIX = "hf:"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}")
_WANTED = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken")
# Of no use to a loader and harmless: not worth a word.
_PLAIN = (".md", ".gitattributes", ".gitignore", "LICENSE", ".png", ".jpg", ".svg", ".pdf")
_SECONDS = 20.0


@dataclass(frozen=True)
class Repo:
    """A repository of models, and a revision of it (a branch, a tag or a commit)."""

    name: str
    revision: str

    @staticmethod
    def parse(text: str) -> Repo:
        """Reads `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`. Raises InvalidArgument for anything else."""
        name, _, revision = text.removeprefix(PREFIX).partition("@")
        wrong = ".." in text or "--" in name
        if wrong or not _REPO.fullmatch(name) or (revision and not _REVISION.fullmatch(revision)):
            raise InvalidArgument(
                "FIELD_INVALID",
                "this names no repository of a hub",
                field="source",
                value=text,
                remedy=f"write {PREFIX}ORG/NAME or {PREFIX}ORG/NAME@REVISION",
            )
        return Repo(name, revision)


@dataclass(frozen=True)
class Fetched:
    """What was fetched: the commit, the licence the repository states, and the files that were left out."""

    commit: str
    license: str
    left_out: tuple[str, ...]


def fetch(repo: Repo, folder: Path, on_progress: Callable[[int, int], None] | None = None) -> Fetched:
    """Downloads safetensors, JSON and the tokenizer's files at the top of a repository into a folder. Blocks.

    Raises:
        NotFound: there is no such repository or revision, or the token may not see it.
        InvalidArgument: it has no safetensors.
        ResourceExhausted: they do not fit on the disk.
        Unavailable: the hub does not answer.
    """
    with _explained(repo.name):
        api = _api()
        info = api.model_info(
            repo.name, revision=repo.revision or None, files_metadata=True, timeout=_SECONDS
        )
        sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or ()}
        wanted = _wanted(repo.name, sizes)
        total, done = sum(sizes[name] for name in wanted), 0
        _need_room(folder, total)
        for name in wanted:
            api.hf_hub_download(repo.name, name, revision=info.sha, local_dir=folder)
            done += sizes[name]
            if on_progress is not None:
                on_progress(done, total)
    left = [name for name in sizes if name not in wanted and not name.endswith(_PLAIN)]
    card = info.card_data
    return Fetched(str(info.sha), str(getattr(card, "license", None) or ""), tuple(sorted(left)))


def push(folder: Path, repo: Repo, message: str, *, public: bool = False) -> str:
    """Uploads a folder as one commit, into a repository that is made when it is missing. Blocks.

    Returns the address of the commit. Raises as `fetch`, and PermissionDenied when the token may not write.
    """
    with _explained(repo.name):
        api = _api()
        api.create_repo(repo.name, private=not public, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo.name, folder_path=folder, revision=repo.revision or None, commit_message=message
        )
    return str(done.commit_url)


def _wanted(repo: str, sizes: dict[str, int]) -> list[str]:
    top = [name for name in sorted(sizes) if name.endswith(_WANTED) and "/" not in name and "\\" not in name]
    if any(name.startswith("model") and name.endswith(".safetensors") for name in top):
        # The same weights once more, in the form of their maker's own programs.
        top = [name for name in top if not name.startswith("consolidated")]
    if not any(name.endswith(".safetensors") for name in top):
        has = ", ".join(sorted(name for name in sizes if not name.endswith(_PLAIN))[:5]) or "nothing"
        raise InvalidArgument(
            "BASE_MODEL_INVALID",
            f"{repo} has no safetensors; it has {has}",
            field="source",
            value=repo,
            remedy="take a repository or revision with model.safetensors, or convert it elsewhere",
        )
    return top


def _need_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ResourceExhausted(
            "DISK_FULL",
            f"{size / 1e9:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free",
            field="source",
            value=folder,
            remedy="free some space, or set TMPDIR to a larger disk",
        )


def _api() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        library = importlib.import_module("huggingface_hub")
    except ImportError:
        raise Unavailable(
            "PROGRAM_MISSING",
            "the library `huggingface_hub` is not installed",
            remedy="pip install huggingface_hub",
        ) from None
    return library.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turns what the hub's library raises into errors of ours. A token is in none of its messages."""
    try:
        yield
    except TunesmithError:
        raise
    except Exception as error:  # its HTTP library's errors come through, too
        raise _error(repo, error) from None


def _error(repo: str, error: Exception) -> TunesmithError:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    kind = type(error).__name__
    told = str(error).partition("\n")[0][:300] or kind
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError", "EntryNotFoundError"):
        return NotFound(
            "SOURCE_NOT_FOUND",
            f"the hub has no such model or revision, or the token may not see it: {told}",
            field="source",
            value=repo,
            remedy="check name and revision; for a private or gated model set HF_TOKEN",
        )
    if status in (401, 403):
        return PermissionDenied(
            "PERMISSION_MISSING",
            f"the hub refuses it: {told}",
            field="source",
            value=repo,
            remedy="set HF_TOKEN to a token that may write there",
        )
    if kind in ("HFValidationError", "BadRequestError"):
        return InvalidArgument("FIELD_INVALID", told, field="source", value=repo)
    return Unavailable(
        "SOURCE_UNAVAILABLE",
        f"the hub cannot be used: {told}",
        field="source",
        value=repo,
        remedy="check the network and HF_ENDPOINT, then try again",
    )
