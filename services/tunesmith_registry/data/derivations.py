"""Versions made of versions: split, filter, sample, mix. The same inputs and seed give the same bytes.

Chance is a hash of seed and row, not a generator of random numbers, so no library's next release changes it.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from tunesmith.api.registry.v1 import datasets_pb2
from tunesmith.api.registry.v1 import derivations_pb2 as pb
from tunesmith.errors import InvalidArgument
from tunesmith_kit import manifest
from tunesmith_kit.blobs import BlobStore, BlobWriter
from tunesmith_kit.manifest import ManifestFile
from tunesmith_registry.data import content, prompts
from tunesmith_registry.data.expressions import parse

Version = datasets_pb2.DatasetVersion
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Made:
    """Content made for a dataset."""

    dataset_id: str
    version: Version


def inputs(request: pb.DeriveDatasetRequest) -> list[str]:
    """The versions an operation reads, `id` or `id@version`. Raises `InvalidArgument` without operation."""
    kind = request.WhichOneof("operation")
    if kind is None:
        raise InvalidArgument(
            "FIELD_INVALID", "no operation is given", field="operation",
            remedy="give one of split, filter, sample and mix",
        )  # fmt: skip
    if kind == "mix":
        return [part.dataset for part in request.mix.parts]
    return [getattr(request, kind).dataset]


def derive(store: BlobStore, request: pb.DeriveDatasetRequest, versions: Sequence[Version]) -> list[Made]:
    """Makes and stores the content of the results. Blocks.

    Raises:
        InvalidArgument: the operation does not fit the rows, or leaves none.
    """
    kind = str(request.WhichOneof("operation"))
    shapes = sorted({version.row_format for version in versions})
    if len(shapes) > 1:
        raise InvalidArgument(
            "SHAPE_MIXED", f"the versions have rows of {' and '.join(shapes)}", field=kind,
            value=", ".join(shapes), remedy="mix datasets of one shape, or import them as one",
        )  # fmt: skip
    with ExitStack() as closing:
        outputs = _Outputs(store, closing)
        parameters = _OPERATIONS[kind](store, getattr(request, kind), versions, outputs)
        derivation = datasets_pb2.Derivation(
            operation=kind,
            inputs=[datasets_pb2.DerivationInput(version=each.name, digest=each.digest) for each in versions],
            parameters=json.dumps(parameters, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        )
        return [outputs.finish(dataset_id, versions[0], derivation) for dataset_id in outputs.order]


class _Outputs:
    """The contents under way, by the dataset that takes them."""

    def __init__(self, store: BlobStore, closing: ExitStack) -> None:
        self._store, self._closing = store, closing
        self._writers: dict[str, BlobWriter] = {}
        self._buffers: dict[str, list[bytes]] = {}
        self._counts: dict[str, int] = {}
        self.order: list[str] = []

    def add(self, dataset_id: str) -> None:
        if dataset_id in self._writers:
            raise InvalidArgument(
                "FIELD_INVALID", "a dataset takes two parts", field="split.parts", value=dataset_id,
                remedy="name each dataset once",
            )  # fmt: skip
        self._writers[dataset_id] = self._store.writer()
        self._closing.callback(self._writers[dataset_id].abort)
        self._buffers[dataset_id], self._counts[dataset_id] = [], 0
        self.order.append(dataset_id)

    def write(self, dataset_id: str, line: bytes) -> None:
        buffer = self._buffers[dataset_id]
        buffer.append(line)
        self._counts[dataset_id] += 1
        if len(buffer) == 1000:
            self._writers[dataset_id].write(b"".join(buffer))
            buffer.clear()

    def finish(self, dataset_id: str, like: Version, derivation: datasets_pb2.Derivation) -> Made:
        count = self._counts[dataset_id]
        if not count:
            raise InvalidArgument(
                "DATASET_EMPTY", f"no row is left for {dataset_id}", field=derivation.operation,
                value=derivation.parameters[:200], remedy="take more rows, or a wider condition",
            )  # fmt: skip
        writer = self._writers[dataset_id]
        writer.write(b"".join(self._buffers[dataset_id]))
        blob = writer.commit()
        properties = {"num_rows": str(count), "row_format": like.row_format}
        made = manifest.create(
            "dataset", [ManifestFile(content.DATA, blob.size_bytes, blob.digest)], properties
        )
        digest = self._store.put_bytes(made.canonical()).digest
        version = Version(
            digest=digest, manifest=made.proto(), num_rows=count, size_bytes=blob.size_bytes,
            row_format=like.row_format, columns=like.columns, derivation=derivation,
            source=f"{derivation.operation} of {_names(derivation)}"[:1000],
        )  # fmt: skip
        return Made(dataset_id, version)


def _names(derivation: datasets_pb2.Derivation) -> str:
    return ", ".join(each.version for each in derivation.inputs)


def _split(
    store: BlobStore, asked: pb.SplitOperation, versions: Sequence[Version], outputs: _Outputs
) -> dict[str, Any]:
    for part in asked.parts:
        outputs.add(part.dataset_id)
    bounds = np.cumsum([part.weight for part in asked.parts])
    names = [part.dataset_id for part in asked.parts]
    if asked.group_by:
        _need_columns(versions[0], {asked.group_by}, "split.group_by")
    seed = asked.seed.to_bytes(8, "little")
    with content.lines(store, versions[0]) as source:
        for line in source:
            key = line
            if asked.group_by:
                value = content.columns(orjson.loads(line)).get(asked.group_by)
                key = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
            drawn = hashlib.blake2b(key, key=seed, digest_size=8).digest()
            share = int.from_bytes(drawn, "little") / 2**64 * bounds[-1]
            at = min(int(np.searchsorted(bounds, share, side="right")), len(names) - 1)
            outputs.write(names[at], line)
    return {
        "group_by": asked.group_by,
        "parts": [[part.dataset_id, part.weight] for part in asked.parts],
        "seed": asked.seed,
    }


def _filter(
    store: BlobStore, asked: pb.FilterOperation, versions: Sequence[Version], outputs: _Outputs
) -> dict[str, Any]:
    condition, columns = parse(asked.expression)
    _need_columns(versions[0], columns, "filter.expression")
    outputs.add(asked.dataset_id)
    seen: set[bytes] = set()
    with content.lines(store, versions[0]) as source:
        for line in source:
            if not condition(content.columns(orjson.loads(line))):
                continue
            if asked.drop_duplicates:
                mark = hashlib.blake2b(line, digest_size=12).digest()
                if mark in seen:
                    continue
                seen.add(mark)
            outputs.write(asked.dataset_id, line)
    return {"drop_duplicates": asked.drop_duplicates, "expression": asked.expression}


def _need_columns(version: Version, wanted: set[str], field: str) -> None:
    """Refuses names that no row can have."""
    known = prompts.columns_of(version)
    lacking = sorted(name for name in wanted if name.partition(".")[0] not in known and name not in known)
    if known and lacking and len(known) < 200:
        raise InvalidArgument(
            "COLUMN_UNKNOWN", f"the rows have no column {lacking[0]}", field=field, value=lacking[0],
            remedy=f"the columns are {', '.join(known[:20])}",
        )  # fmt: skip


def _sample(
    store: BlobStore, asked: pb.SampleOperation, versions: Sequence[Version], outputs: _Outputs
) -> dict[str, Any]:
    outputs.add(asked.dataset_id)
    chosen = _choose(versions[0].num_rows, asked.num_rows, asked.seed)
    with content.lines(store, versions[0]) as source:
        for line in _picked(source, chosen):
            outputs.write(asked.dataset_id, line)
    return {"num_rows": asked.num_rows, "seed": asked.seed}


def _picked(source: Iterable[bytes], chosen: Indices) -> Iterator[bytes]:
    wanted = iter(chosen.tolist())
    at = next(wanted, -1)
    for index, line in enumerate(source):
        if index == at:
            yield line
            at = next(wanted, -1)


def _mix(
    store: BlobStore, asked: pb.MixOperation, versions: Sequence[Version], outputs: _Outputs
) -> dict[str, Any]:
    outputs.add(asked.dataset_id)
    weights = np.array([part.weight for part in asked.parts])
    shares = weights / weights.sum()
    sizes = np.array([version.num_rows for version in versions])
    total = asked.num_rows or int((sizes / shares).min())
    counts = np.floor(shares * total).astype(np.int64)
    counts[: total - int(counts.sum())] += 1  # what rounding left over goes to the first parts
    parts, rows = [], []
    for number, (size, count) in enumerate(zip(sizes.tolist(), counts.tolist(), strict=True)):
        whole, rest = divmod(count, size)
        chosen = np.concatenate([*[np.arange(size)] * whole, _choose(size, rest, asked.seed + number)])
        rows.append(chosen)
        parts.append(np.full(len(chosen), number))
    part_of, row_of = np.concatenate(parts), np.concatenate(rows)
    order = np.argsort(_draws(len(row_of), asked.seed), kind="stable")
    with ExitStack() as closing:
        sources = [closing.enter_context(content.lines(store, version)) for version in versions]
        offsets = [_offsets(source) for source in sources]
        for at in order.tolist():
            number, row = int(part_of[at]), int(row_of[at])
            sources[number].seek(offsets[number][row])
            outputs.write(asked.dataset_id, sources[number].readline())
    return {
        "num_rows": asked.num_rows,
        "seed": asked.seed,
        "weights": [part.weight for part in asked.parts],
    }


def _offsets(source: Iterable[bytes]) -> "array[int]":
    """Where each line begins."""
    found, at = array("Q"), 0
    for line in source:
        found.append(at)
        at += len(line)
    return found


def _draws(count: int, seed: int) -> "npt.NDArray[np.uint64]":
    """A number by chance for each row: SplitMix64 of seed and row (Steele, Lea and Flood, OOPSLA 2014)."""
    start = np.uint64(int.from_bytes(hashlib.blake2b(seed.to_bytes(16, "little"), digest_size=8).digest()))
    mixed = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)


def _choose(size: int, count: int, seed: int) -> Indices:
    """`count` of `size` rows, ascending."""
    if count >= size:
        return np.arange(size)
    return np.sort(np.argsort(_draws(size, seed), kind="stable")[:count])


_OPERATIONS: Mapping[str, Callable[[BlobStore, Any, Sequence[Version], _Outputs], dict[str, Any]]] = {
    "split": _split,
    "filter": _filter,
    "sample": _sample,
    "mix": _mix,
}
