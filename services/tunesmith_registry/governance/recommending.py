"""Which base models suit a task and a dataset: words, languages, results of models made from them, memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import datasets_pb2, models_pb2, search_pb2
from tunesmith_kit.blobs import BlobStore
from tunesmith_registry import store, versions
from tunesmith_registry.governance import memory, searching
from tunesmith_registry.governance.embedding import Meaning
from tunesmith_registry.governance.entries import words_of
from tunesmith_registry.governance.index import Index

_CHAT = ("messages", "chat")


@dataclass(frozen=True)
class Candidate:
    """A base model, what is said of it, and the models made from it.

    Attributes:
        closest: cosine of the task with what is closest to it: the base model or a model made from it, named.
    """

    base: models_pb2.BaseModel
    children: Sequence[search_pb2.FoundModel]
    with_data: int
    closest: tuple[float, str]


@dataclass(frozen=True)
class Known:
    """What a recommendation is made from."""

    candidates: Sequence[Candidate]
    data: datasets_pb2.DatasetVersion | None
    mode: str
    mode_reason: str


def question(session: Session, project: str, request: search_pb2.RecommendBaseModelsRequest) -> str:
    """What is asked for, in words: the task, and what is said of the data."""
    row = store.dataset_row(session, project, request.dataset.partition("@")[0]) if request.dataset else None
    return ". ".join(part for part in (request.task, row.description if row is not None else "") if part)


def gather(
    session: Session,
    index: Index,
    project: str,
    data: datasets_pb2.DatasetVersion | None,
    meaning: Meaning,
) -> Known:
    """Reads everything a recommendation needs."""
    with index.lock:
        index.refresh(session)
        entries = searching.bases(index)
        bases = [base.base_model for base in entries]
        children = {base: searching.made_from(index, base) for base in bases}
        closest = {
            base.base_model: _closest(index, [base, *children[base.base_model]], meaning) for base in entries
        }
        mode, reason = searching.told(index, meaning)
    dataset = data.name.rpartition("/versions/")[0] if data is not None else ""
    found = []
    for base_id in bases:
        used = 0
        for child in children[base_id]:
            parts = child.version.split("/")
            version = store.version_number(parts[5]) if dataset and len(parts) == 6 else 0
            used += bool(version) and _used(session, project, parts[3], version, dataset)
        base = store.base_model(session, project, base_id)
        found.append(Candidate(base, children[base_id], used, closest[base_id]))
    return Known(found, data, mode, reason)


def _closest(index: Index, found: Sequence[search_pb2.FoundModel], meaning: Meaning) -> tuple[float, str]:
    if meaning.vector is None:
        return 0.0, ""
    close = index.closeness(meaning.vector)
    places = [(index.place(model.name), model.name) for model in found]
    return max((float(close[at]), name) for at, name in places if at is not None)


def _used(session: Session, project: str, model_id: str, number: int, dataset: str) -> bool:
    version = versions.version(session, project, model_id, number)
    return version.dataset_version.startswith(f"{dataset}/")


def rank(
    blobs: BlobStore, known: Known, request: search_pb2.RecommendBaseModelsRequest
) -> list[search_pb2.Recommendation]:
    """Returns the base models that fit, best first. Blocks."""
    wanted = set(words_of(request.task))
    found = []
    for candidate in known.candidates:
        made = _judge(blobs, candidate, wanted, known.data, request.memory_bytes)
        if made is not None:
            found.append(made)
    return sorted(found, key=lambda made: (-made.score, made.base_model.base_model_id))


def _judge(
    blobs: BlobStore,
    candidate: Candidate,
    wanted: set[str],
    data: datasets_pb2.DatasetVersion | None,
    memory_bytes: int,
) -> search_pb2.Recommendation | None:
    base, score, reasons = candidate.base, 0.2, []
    needs = memory.needs(blobs, base, 1, 0)
    if memory_bytes and needs is not None:
        if needs.lora_bytes > memory_bytes:
            return None
        reasons.append(f"LoRA training takes about {needs.lora_bytes / 1e9:.1f} GB")
    share, words = _fit(candidate, wanted)
    close, what = candidate.closest
    score += 0.4 * max(share, close)
    if words:
        reasons.append(f"it or models made from it are about {', '.join(sorted(words)[:5])}")
    if close >= searching.RELATED:
        reasons.append(f"what {what.rpartition('/')[2]} is for is close to the task")
    if candidate.with_data:
        score += 0.2
        reasons.append(f"{candidate.with_data} of its models were trained on this dataset")
    if candidate.children:
        score += 0.1
        reasons.append(f"{len(candidate.children)} models were made from it here")
    if data is not None and data.row_format in _CHAT and _has_template(base):
        score += 0.1
        reasons.append("it has a chat template, as the conversations of the dataset want")
    best: dict[str, float] = {}
    for child in candidate.children:
        for name, value in child.metrics.items():
            better = min if "loss" in name or "perplexity" in name else max
            best[name] = better(best.get(name, value), value)
    reasons = reasons or ["nothing is known against it"]
    return search_pb2.Recommendation(
        base_model=base, score=min(score, 1.0), reasons=reasons, best_metrics=best
    )


def _fit(candidate: Candidate, wanted: set[str]) -> tuple[float, set[str]]:
    base = candidate.base
    texts = [*base.tasks, *base.tags, *base.languages, base.base_model_id]
    for child in candidate.children:
        texts += [child.summary, *child.tasks, *child.tags, *child.languages]
    words = wanted & {word for text in texts for word in words_of(text)}
    return (len(words) / len(wanted) if wanted else 0.0), words


def _has_template(base: models_pb2.BaseModel) -> bool:
    """Instruction-tuned models say so in a file or in their name."""
    paths = {file.path for file in base.manifest.files}
    return "chat_template.jinja" in paths or "instruct" in base.base_model_id
