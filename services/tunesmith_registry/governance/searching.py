"""Answers of the search: filters, words, meaning, order, pages, facets; models alike; base models."""

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import search_pb2
from tunesmith.errors import InvalidArgument, NotFound
from tunesmith_registry import transitions
from tunesmith_registry.governance.embedding import Meaning, unavailable
from tunesmith_registry.governance.entries import BASE, MODEL, VERSION, words_of
from tunesmith_registry.governance.index import Index, Mask
from tunesmith_registry.store import cursor_numbers

FULL_TEXT, MEANING, BOTH = "full text", "meaning", "full text and meaning"
# Cosine from which on two texts count as related, and how many of them are of interest: what has nothing to
# do with a question reaches 0.25, what answers it 0.3 to 0.7.
RELATED, _MOST_RELATED = 0.3, 50
# Reciprocal rank fusion (Cormack et al. 2009): each way gives 1 / (60 + rank).
_RANKS_FROM = 60
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


def wants_meaning(request: search_pb2.SearchModelsRequest) -> str:
    """Why the meaning of a search's words is of no interest; empty: it is."""
    if not any(words_of(request.query)):
        return "there are no words"
    if request.mode == search_pb2.SEARCH_MODE_FULL_TEXT:
        return "full text was asked for"
    if (request.order_by or "relevance") != "relevance":
        return "the order is not relevance"
    if request.kinds and all(kind == VERSION for kind in request.kinds):
        return "versions are found by words"
    return ""


def search(
    session: Session,
    index: Index,
    request: search_pb2.SearchModelsRequest,
    meaning: Meaning,
    after: str,
    size: int,
) -> tuple[search_pb2.SearchModelsResponse, str]:
    """Answers a search; returns the cursor of the next page too. `after` is the number of results before.

    Raises:
        InvalidArgument: a comparison or the order cannot be read.
        FailedPrecondition: only the meaning is to count, and is not known.
    """
    start = cursor_numbers(after, 1)[0] if after else 0
    only_meaning = request.mode == search_pb2.SEARCH_MODE_MEANING
    if only_meaning and meaning.vector is None:
        raise unavailable(meaning)
    with index.lock:
        index.refresh(session)
        mask = _filtered(index, request)
        words = [] if only_meaning else list(words_of(request.query))
        scores = index.scores(words) if words else np.zeros(len(mask))
        if meaning.vector is not None:
            close = index.closeness(meaning.vector)
            scores = close * _related(close, mask) if only_meaning else _fused(scores, close, mask)
        if words or only_meaning:
            mask &= scores > 0
        order = request.order_by or ("relevance" if words or only_meaning else "-create_time")
        ordered = _ordered(index, mask, scores, order)
        answer = search_pb2.SearchModelsResponse(total=len(ordered))
        answer.mode, answer.mode_reason = told(index, meaning)
        if only_meaning:
            answer.mode = MEANING
        for at in ordered[start : start + size]:
            _put(index, answer.results, int(at), float(scores[at]))
        if not request.no_facets:
            answer.facets.extend(_facets(index, mask))
    return answer, str(start + size) if start + size < len(ordered) else ""


def told(index: Index, meaning: Meaning) -> tuple[str, str]:
    """Which way words were understood, and why the meaning did not count, or not of all there is."""
    if meaning.vector is None:
        return FULL_TEXT, meaning.reason
    done, total = index.vectors.progress
    return BOTH, "" if done == total else f"{done:,} of {total:,} texts are encoded so far"


def _related(close: npt.NDArray[np.float64], mask: Mask) -> Mask:
    """The closest of a mask, as far as they have to do with the question."""
    related = mask & (close >= RELATED)
    at = np.flatnonzero(related)
    if len(at) > _MOST_RELATED:
        related[at[np.argsort(-close[at], kind="stable")[_MOST_RELATED:]]] = False
    return related


def _fused(
    full: npt.NDArray[np.float64], close: npt.NDArray[np.float64], mask: Mask
) -> npt.NDArray[np.float64]:
    """What both ways find: who is high in one list or in both comes first."""
    fused = np.zeros(len(full))
    for scores, found in ((full, mask & (full > 0)), (close, _related(close, mask))):
        at = np.flatnonzero(found)
        at = at[np.argsort(-scores[at], kind="stable")]
        fused[at] += 1 / (_RANKS_FROM + np.arange(len(at)))
    return fused


def similar(
    session: Session, index: Index, name: str, why_not: str, after: str, size: int
) -> tuple[search_pb2.ListSimilarModelsResponse, str]:
    """Lists the models most like one. `why_not` says why no meaning is known.

    Raises:
        NotFound: there is no such model.
    """
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
        likeness, meant = index.likeness(entry)
        mask = index.alive & index.having("kind", ["model"]) & (likeness > 0)
        mask[place] = False
        ordered = _ordered(index, mask, likeness, "relevance")
        answer = search_pb2.ListSimilarModelsResponse(mode=BOTH if meant else FULL_TEXT)
        done, total = index.vectors.progress
        if why_not or done < total:
            answer.mode_reason = why_not or f"{done:,} of {total:,} texts are encoded so far"
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
