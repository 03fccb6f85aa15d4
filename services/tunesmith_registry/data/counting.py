"""One pass over a version's rows: what they are made of, as data for plots."""

import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from tunesmith.api.registry.v1 import statistics_pb2 as pb
from tunesmith_registry.data import duplicates
from tunesmith_registry.data.languages import language

_CHUNK = 4096
_MOST_LABELS = 100
_MOST_PAIRS = 20
_SHOWN = 200
_BINS = 30
_KINDS: Mapping[str, str] = {
    "control": "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f",
    "bidi": "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069",
    "zero_width": "\u200b-\u200d\u2060\ufeff",
    "replacement": "\ufffd",
    "private_use": "\ue000-\uf8ff",
}
_SUSPICIOUS = re.compile(f"[{''.join(_KINDS.values())}]")
_OF_KIND = {name: re.compile(f"[{letters}]") for name, letters in _KINDS.items()}

Rendered = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]


class Counting:
    """Counts rows, chunk by chunk."""

    def __init__(self) -> None:
        self.out = pb.DatasetStatistics()
        self._characters: array[int] = array("q")
        self._turns: array[int] = array("q")
        self._roles: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._suspicious: Counter[str] = Counter()
        self._marks: list[duplicates.Signatures] = []
        self.exact: array[int] = array("Q")  # hashes of the rows compared
        self.tokens = TokenCount()

    def take(self, lines: Sequence[bytes], render: Rendered | None) -> None:
        """Counts some rows; `render` tells their tokens."""
        rows = [orjson.loads(line) for line in lines]
        texts = [self._one(row) for row in rows]
        if self.out.num_rows_compared < duplicates.MOST_ROWS:
            self._marks.append(duplicates.signatures(texts))
            self.exact.extend(
                int.from_bytes(blake2b(line, digest_size=8).digest(), "little") for line in lines
            )
            self.out.num_rows_compared += len(rows)
        self.out.num_rows += len(rows)
        self.out.size_bytes += sum(map(len, lines))
        if render is not None:
            self.tokens.take(render(rows))

    def _one(self, row: dict[str, Any]) -> str:
        turns = row.get("messages")
        if isinstance(turns, list):
            text = "\n".join(turn["content"] for turn in turns)
            self._turns.append(len(turns))
            for turn in turns:
                self._roles[turn["role"]] += 1
                if turn["role"] == "assistant" and not turn["content"].strip():
                    self.out.num_empty_answers += 1
        else:
            text = "\n".join(value if isinstance(value, str) else str(value) for value in row.values())
            if isinstance(label := row.get("label"), str | int | bool):
                self._labels[str(label)[:_SHOWN]] += 1
        self._characters.append(len(text))
        self._languages[language(text)] += 1
        if not text.isascii() or _SUSPICIOUS.search(text):
            for name, letters in _OF_KIND.items():
                if letters.search(text):
                    self._suspicious[name] += 1
        return text

    def marks(self) -> duplicates.Signatures:
        """Signatures of the rows compared."""
        if not self._marks:
            return np.zeros((0, duplicates.NUM_PERM), dtype=np.uint32)
        return np.concatenate(self._marks)

    def finish(self) -> pb.DatasetStatistics:
        """The statistics, but for what other versions and tokens tell."""
        out = self.out
        out.characters.CopyFrom(histogram(self._characters))
        if self._turns:
            out.turns.CopyFrom(histogram(self._turns))
        out.roles.extend(_shares(self._roles, sum(self._roles.values())))
        out.languages.extend(_shares(self._languages, out.num_rows))
        out.labels.extend(_shares(self._labels, out.num_rows)[:_MOST_LABELS])
        out.label_balance = _balance(self._labels)
        out.suspicious.extend(_shares(self._suspicious, out.num_rows))
        return out


def note_duplicates(
    counter: Counting, marks: duplicates.Signatures, lines: Callable[[Iterable[int]], dict[int, str]]
) -> None:
    """Counts rows that come twice; `lines` gives the texts of some rows, by index."""
    out, pairs = counter.out, duplicates.near(marks)
    count, same = duplicates.exact(counter.exact, array("Q", range(len(counter.exact))))
    out.num_exact_duplicates = count
    out.num_near_duplicates = len(pairs) - count  # the same row has the same signature
    shown = [(row, first, 1.0) for row, first in same[: _MOST_PAIRS // 2]]
    exact = {row for row, _ in same}
    near = [pair for pair in pairs if pair[0] not in exact and (count <= len(same) or pair[2] < 1)]
    shown += near[: _MOST_PAIRS - len(shown)]
    out.duplicates.extend(_pairs(shown, lines))


def note_overlap(
    out: pb.DatasetStatistics,
    name: str,
    marks: duplicates.Signatures,
    others: duplicates.Signatures,
    lines: Callable[[Iterable[int]], dict[int, str]],
) -> None:
    """Counts rows that stand in another version too."""
    found = duplicates.overlap(marks, others)
    hit = len({other for _, other, _ in found})
    out.overlaps.add(
        dataset_version=name,
        num_rows=len(found),
        share=hit / len(others) if len(others) else 0,
        examples=_pairs(found[:_MOST_PAIRS], lines),
    )


def _pairs(
    found: Sequence[tuple[int, int, float]], lines: Callable[[Iterable[int]], dict[int, str]]
) -> list[pb.DuplicatePair]:
    texts = lines([row for row, _, _ in found])
    return [
        pb.DuplicatePair(row=row + 1, like_row=first + 1, similarity=similarity, text=texts[row][:_SHOWN])
        for row, first, similarity in found
    ]


class TokenCount:
    """Tokens of rows as training sees them."""

    def __init__(self) -> None:
        self._lengths: array[int] = array("q")
        self._trained: array[int] = array("q")
        self._num_truncated = self._num_bare = self._num_errors = 0
        self._first_error = ""

    def take(self, seen: Iterable[Mapping[str, Any]]) -> None:
        """Counts what was rendered."""
        for item in seen:
            if "error" in item:
                self._num_errors += 1
                self._first_error = self._first_error or item["error"]
                continue
            self._lengths.append(item["tokens"])
            self._trained.append(item["trained"])
            self._num_truncated += item["truncated"]
            self._num_bare += not item["trained"]

    def finish(self, base_model: str, template: str, max_length: int) -> pb.TokenStatistics:
        """The counts as data for plots."""
        count = len(self._lengths)
        lengths = np.frombuffer(self._lengths, dtype=np.int64) if count else np.zeros(0, dtype=np.int64)
        return pb.TokenStatistics(
            base_model=base_model,
            prompt_template=template,
            max_length=max_length,
            lengths=histogram(self._lengths),
            trained=histogram(self._trained),
            num_tokens=sum(self._lengths),
            num_trained_tokens=sum(self._trained),
            num_truncated=self._num_truncated,
            truncated_share=self._num_truncated / count if count else 0,
            num_without_labels=self._num_bare,
            num_errors=self._num_errors,
            first_error=self._first_error,
            truncation=[
                pb.TruncationPoint(max_length=limit, share=float((lengths > limit).mean()) if count else 0)
                for limit in (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
            ],
        )


def histogram(values: "array[int]") -> pb.CountHistogram:
    """Counts over about thirty ranges: of equal width, or of equal ratio when the values spread wide."""
    if not values:
        return pb.CountHistogram()
    found: npt.NDArray[np.int64] = np.frombuffer(values, dtype=np.int64)
    low, high = int(found.min()), int(found.max())
    bounds = _bounds(low, high, float(np.median(found)))
    counts, _ = np.histogram(found, bounds)
    p50, p90, p99 = np.quantile(found, [0.5, 0.9, 0.99]).tolist()
    return pb.CountHistogram(
        bounds=bounds, counts=counts.tolist(), min=low, max=high, mean=float(found.mean()),
        p50=p50, p90=p90, p99=p99,
    )  # fmt: skip


def _bounds(low: int, high: int, median: float) -> list[float]:
    if high > 20 * max(1.0, median):
        ratio = math.log((high + 1) / max(1, low)) / _BINS
        wide = {round(max(1, low) * math.exp(ratio * index)) for index in range(_BINS + 1)}
        return [float(bound) for bound in sorted({low, *wide, high + 1})]
    width = max(1, math.ceil((high - low + 1) / _BINS))
    return [float(bound) for bound in range(low, high + width + 1, width)]


def _shares(counts: Counter[str], total: int) -> list[pb.Share]:
    return [
        pb.Share(name=name, count=count, share=count / total if total else 0)
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _balance(counts: Counter[str]) -> float:
    total = sum(counts.values())
    if len(counts) < 2:
        return 0.0
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    return entropy / math.log(len(counts))


def chunks(source: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lines in chunks."""
    lines = iter(source)
    while chunk := list(islice(lines, _CHUNK)):
        yield chunk
