"""Answers of the search: filters, words, order, pages, facets; models alike; base models that suit."""

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import search_pb2
from tunesmith.errors import InvalidArgument, NotFound
from tunesmith_registry import transitions
from tunesmith_registry.governance.entries import BASE, MODEL, words_of
from tunesmith_registry.governance.index import Index, Mask
from tunesmith_registry.store import cursor_numbers

# There is no encoder in this process: meaning would need torch, which stays in the trainer.
MODE = "full text"
_MOST_VALUES = 50
_COMPARISON = re.compile(r"\s*(.+?)\s*(<=|>=|<|>|=)\s*([-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)\s*")
_COMPARE: dict[str, Callable[[npt.NDArray[np.float64], float], Mask]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "=": np.equal,
}
_ORDERS = ("relevance", "create_time", "name")


def search(
    session: Session, index: Index, request: search_pb2.SearchModelsRequest, after: str, size: int
) -> tuple[search_pb2.SearchModelsResponse, str]:
    """Answers a search; returns the cursor of the next page too. `after` is the number of results before.

    Raises:
        InvalidArgument: a comparison or the order cannot be read.
    """
    start = cursor_numbers(after, 1)[0] if after else 0
    with index.lock:
        index.refresh(session)
        mask = _filtered(index, request)
        words = list(words_of(request.query))
        scores = index.scores(words) if words else np.zeros(len(mask))
        if words:
            mask &= scores > 0
        ordered = _ordered(
            index, mask, scores, request.order_by or ("relevance" if words else "-create_time")
        )
        answer = search_pb2.SearchModelsResponse(total=len(ordered), mode=MODE)
        for at in ordered[start : start + size]:
            _put(index, answer.results, int(at), float(scores[at]))
        if not request.no_facets:
            answer.facets.extend(_facets(index, mask))
    return answer, str(start + size) if start + size < len(ordered) else ""


def similar(
    session: Session, index: Index, name: str, after: str, size: int
) -> tuple[search_pb2.ListSimilarModelsResponse, str]:
    """Lists the models most like one. Raises `NotFound` when there is no such model."""
    start = cursor_numbers(after, 1)[0] if after else 0
    with index.lock:
        index.refresh(session)
        place = index.place(name)
        entry = index.entries[place] if place is not None else None
        if entry is None:
            raise NotFound(
                "MODEL_NOT_FOUND", f"there is no model {name}", field="name", value=name,
                remedy="`tunesmith models list` lists them",
            )  # fmt: skip
        likeness = index.likeness(entry)
        mask = index.alive & index.having("kind", ["model"]) & (likeness > 0)
        mask[place] = False
        ordered = _ordered(index, mask, likeness, "relevance")
        answer = search_pb2.ListSimilarModelsResponse(mode=MODE)
        for at in ordered[start : start + size]:
            _put(index, answer.results, int(at), float(likeness[at]))
    return answer, str(start + size) if start + size < len(ordered) else ""


def _put(index: Index, results: "object", at: int, score: float) -> None:
    entry = index.entries[at]
    assert entry is not None, "only what is alive is shown"
    results.append(entry.found)  # type: ignore[attr-defined]
    results[-1].score = score  # type: ignore[index]


def _filtered(index: Index, request: search_pb2.SearchModelsRequest) -> Mask:
    mask = index.alive.copy()
    kinds = list(request.kinds) or [MODEL]
    names = [search_pb2.ModelKind.Name(kind).removeprefix("MODEL_KIND_").lower() for kind in kinds]
    mask &= index.having("kind", names)
    if request.base_models:
        mask &= index.having("base_model", [name.rpartition("/")[2] for name in request.base_models])
    if request.languages:
        mask &= index.having("language", request.languages)
    if request.tasks:
        mask &= index.having("task", request.tasks)
    for tag in request.tags:
        mask &= index.having("tag", [tag])
    if request.stages:
        mask &= index.having("stage", [transitions.word(stage) for stage in request.stages])
    for text in request.metrics:
        mask &= _compared(index, text)
    if request.model:
        mask &= index.of_model(request.model.rpartition("/")[2])
    return mask


def _compared(index: Index, text: str) -> Mask:
    match = _COMPARISON.fullmatch(text)
    if match is None:
        raise InvalidArgument(
            "FILTER_INVALID",
            "this is no comparison of a metric",
            field="metrics",
            value=text,
            remedy="write it as NAME<NUMBER, with <, <=, >, >= or =, for example `eval/loss<1.5`",
        )
    with np.errstate(invalid="ignore"):
        return _COMPARE[match[2]](index.metric(match[1]), float(match[3]))


def _ordered(
    index: Index, mask: Mask, scores: npt.NDArray[np.float64], order_by: str
) -> npt.NDArray[np.int64]:
    """Places of a mask in an order; equals in the order of their names, so that pages fit together."""
    at = np.flatnonzero(mask)
    down, order = order_by.startswith("-"), order_by.removeprefix("-")
    if order == "name":
        return np.array(sorted(at, key=lambda i: _name(index, int(i)), reverse=down), np.int64)
    if order == "create_time":
        key = index.seconds[at]
    elif order == "relevance":
        key, down = scores[at], True
    elif order.startswith("metric:"):
        key = index.metric(order.removeprefix("metric:"))[at]
    else:
        raise InvalidArgument(
            "FILTER_INVALID",
            "there is no such order",
            field="order_by",
            value=order_by,
            remedy=f"use {', '.join(_ORDERS)} or metric:NAME, with - before it for the other way round",
        )
    key = -key if down else key
    return at[np.lexsort((at, np.where(np.isnan(key), np.inf, key)))]


def _name(index: Index, at: int) -> str:
    entry = index.entries[at]
    return entry.found.name if entry is not None else ""


def _facets(index: Index, mask: Mask) -> list[search_pb2.Facet]:
    return [
        search_pb2.Facet(
            name=facet,
            values=[
                search_pb2.FacetValue(value=value, count=count)
                for value, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[
                    :_MOST_VALUES
                ]
            ],
        )
        for facet, counts in index.counts(mask).items()
    ]


def made_from(index: Index, base_id: str) -> list[search_pb2.FoundModel]:
    """Returns the models made from a base model. The caller holds the lock."""
    mask = index.alive & index.having("kind", ["model"]) & index.having("base_model", [base_id])
    found = (index.entries[at] for at in np.flatnonzero(mask))
    return [entry.found for entry in found if entry is not None]


def bases(index: Index) -> list[search_pb2.FoundModel]:
    """Returns what is known of base models. The caller holds the lock."""
    return [entry.found for entry in index.entries if entry is not None and entry.found.kind == BASE]
