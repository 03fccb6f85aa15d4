"""The stored rows of a dataset version, read as a stream."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import orjson

from tunesmith.api.registry.v1 import datasets_pb2
from tunesmith.errors import FailedPrecondition
from tunesmith_kit.blobs import BlobStore

DATA = "data.jsonl"


@contextmanager
def lines(store: BlobStore, version: datasets_pb2.DatasetVersion) -> Iterator[BinaryIO]:
    """The file of a version's rows, a JSON object a line."""
    file = next((file for file in version.manifest.files if file.path == DATA), None)
    if file is None:
        raise FailedPrecondition(
            "ARTIFACT_CORRUPT", "the version has no rows", field="name", value=version.name,
            remedy="import the data again",
        )  # fmt: skip
    with store.read(file.sha256) as source:
        yield source


def rows(store: BlobStore, version: datasets_pb2.DatasetVersion) -> Iterator[dict[str, Any]]:
    """The rows of a version."""
    with lines(store, version) as source:
        for line in source:
            yield orjson.loads(line)


def columns(row: dict[str, Any]) -> dict[str, Any]:
    """What templates and filters see of a row: its columns; of a conversation also its parts."""
    if "messages" not in row:
        return row
    turns = row["messages"]
    system = next((turn["content"] for turn in turns if turn["role"] == "system"), "")
    prompt = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
    completion = next((turn["content"] for turn in reversed(turns) if turn["role"] == "assistant"), "")
    return {**row, "system": system, "prompt": prompt, "completion": completion, "turns": len(turns)}


CONVERSATION = ("messages", "system", "prompt", "completion", "turns")
