"""What the search knows of a model, base model or version."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import cards_pb2, models_pb2, search_pb2
from tunesmith_registry import transitions
from tunesmith_registry.evaluations.tables import EVALUATION_SCORES
from tunesmith_registry.governance.tables import CARD_SECTIONS
from tunesmith_registry.tables import BASE_MODELS, MODEL_ALIASES, MODEL_VERSIONS, MODELS

MODEL, BASE, VERSION = (
    search_pb2.MODEL_KIND_MODEL,
    search_pb2.MODEL_KIND_BASE_MODEL,
    search_pb2.MODEL_KIND_VERSION,
)
_WORD = re.compile(r"\w+")
_LONGEST_WORD = 40
FACETS = ("kind", "base_model", "stage", "language", "task", "tag")


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that can be found: the answer, its words with weights, its values by facet.

    Attributes:
        text: what is said of it, for the encoder; empty for versions, which are found by words only.
    """

    found: search_pb2.FoundModel
    model_id: str
    words: Mapping[str, float]
    facets: Mapping[str, tuple[str, ...]]
    seconds: float
    text: str

    @property
    def text_digest(self) -> str:
        """Names the text; short, so that nobody takes it for the digest of content."""
        return hashlib.blake2s(self.text.encode(), digest_size=16).hexdigest()


def words_of(text: str) -> Iterator[str]:
    """Yields the words of a text, folded: case and accents do not count."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(char for char in folded if not unicodedata.combining(char))
    for match in _WORD.finditer(plain.replace("_", " ")):
        yield match[0][:_LONGEST_WORD]


@dataclass
class Rows:
    """What entries are made of: rows of a project, or of some of its models."""

    sections: dict[str, cards_pb2.CardSections] = field(default_factory=dict)
    aliases: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


def _rows(session: Session, project: str, model_id: str | None) -> Rows:
    rows = Rows()
    of, named, scores = CARD_SECTIONS.c, MODEL_ALIASES.c, EVALUATION_SCORES.c
    written = select(of.model_id, of.body).where(of.project == project)
    aliases = select(named.model_id, named.version, named.alias).where(named.project == project)
    values = select(scores.target, scores.metric, scores.value).where(scores.project == project)
    if model_id is not None:
        written = written.where(of.model_id == model_id)
        aliases = aliases.where(named.model_id == model_id)
        values = values.where(scores.target.startswith(f"projects/{project}/models/{model_id}/"))
    for row in session.execute(written):
        rows.sections[row.model_id] = cards_pb2.CardSections.FromString(row.body)
    for owner, number, alias in session.execute(aliases.order_by(named.alias)):
        rows.aliases.setdefault((owner, number), []).append(alias)
    for target, metric, value in session.execute(values.order_by(scores.create_time)):
        rows.scores.setdefault(target, {})[metric] = value
    return rows


def base_entries(session: Session, project: str, base_id: str | None = None) -> Iterator[Entry]:
    """Yields the entries of base models."""
    query = select(BASE_MODELS.c.body).where(BASE_MODELS.c.project == project)
    query = query.where(BASE_MODELS.c.id == base_id) if base_id is not None else query
    scored: dict[str, dict[str, float]] = {}
    scores = EVALUATION_SCORES.c
    values = select(scores.target, scores.metric, scores.value).where(
        scores.project == project, scores.target.startswith(f"projects/{project}/baseModels/")
    )
    for row in session.execute(values.order_by(scores.create_time)):
        scored.setdefault(row.target, {})[row.metric] = row.value
    for body in session.execute(query).scalars():
        base = models_pb2.BaseModel.FromString(body)
        found = search_pb2.FoundModel(
            name=base.name,
            kind=BASE,
            summary=base.source,
            base_model=base.base_model_id,
            languages=base.languages,
            tasks=base.tasks,
            tags=base.tags,
            metrics=scored.get(base.name, {}),
            create_time=base.create_time,
        )
        yield _entry(found, "", f"{base.architecture} {base.license} {base.source}")


def model_entries(session: Session, project: str, model_id: str | None = None) -> Iterator[Entry]:
    """Yields the entries of models and their versions."""
    rows = _rows(session, project, model_id)
    latest = select(MODELS.c.id, MODELS.c.latest_version).where(MODELS.c.project == project)
    of = MODEL_VERSIONS.c
    bodies = select(of.model_id, of.version, of.body).where(of.project == project)
    if model_id is not None:
        latest = latest.where(MODELS.c.id == model_id)
        bodies = bodies.where(of.model_id == model_id)
    newest = {row.id: row.latest_version for row in session.execute(latest)}
    shown: dict[str, models_pb2.ModelVersion] = {}
    for row in session.execute(bodies.order_by(of.model_id, of.version)):
        version = models_pb2.ModelVersion.FromString(row.body)
        yield _of_version(rows, row.model_id, version, version.name, VERSION)
        known = shown.get(row.model_id)
        in_production = known is not None and known.stage == transitions.PRODUCTION
        if version.stage == transitions.PRODUCTION or (
            version.version == newest.get(row.model_id) and not in_production
        ):
            shown[row.model_id] = version
    for owner, version in shown.items():
        yield _of_version(rows, owner, version, f"projects/{project}/models/{owner}", MODEL)


def _of_version(
    rows: Rows,
    model_id: str,
    version: models_pb2.ModelVersion,
    name: str,
    kind: search_pb2.ModelKind.ValueType,
) -> Entry:
    written = rows.sections.get(model_id) or cards_pb2.CardSections()
    labels = [f"{key}={value}" for key, value in version.labels.items()]
    found = search_pb2.FoundModel(
        name=name,
        kind=kind,
        version=version.name,
        summary=version.description if kind == VERSION and version.description else written.summary,
        base_model=version.base_model.rpartition("/")[2],
        stage=version.stage,
        languages=written.languages,
        tasks=written.tasks,
        tags=sorted({*written.tags, *labels}),
        aliases=rows.aliases.get((model_id, version.version), []),
        metrics={**version.metrics, **rows.scores.get(version.name, {})},
        create_time=version.create_time,
    )
    texts = f"{written.intended_use} {written.limitations} {version.description} {_data(version)}"
    return _entry(found, model_id, texts)


def _data(version: models_pb2.ModelVersion) -> str:
    parts = version.dataset_version.split("/")
    return parts[3] if len(parts) > 3 else ""


def _entry(found: search_pb2.FoundModel, model_id: str, texts: str) -> Entry:
    words: dict[str, float] = {}
    title = model_id or found.base_model
    tagged = " ".join([*found.tags, *found.tasks, *found.aliases])
    # A word in the name tells more than one in the text.
    for text, weight in (
        (title, 4.0),
        (tagged, 3.0),
        (found.summary, 2.0),
        (found.base_model, 1.5),
        (texts, 1.0),
    ):
        for word in words_of(text):
            words[word] = max(words.get(word, 0.0), weight)
    facets = {
        "kind": (search_pb2.ModelKind.Name(found.kind).removeprefix("MODEL_KIND_").lower(),),
        "base_model": (found.base_model,) if found.base_model else (),
        "stage": (transitions.word(found.stage),) if found.stage else (),
        "language": tuple(found.languages),
        "task": tuple(found.tasks),
        "tag": tuple(found.tags),
    }
    told = "" if found.kind == VERSION else _told(title, found, texts)
    return Entry(found, model_id, words, facets, found.create_time.ToNanoseconds() / 1e9, told)


def _told(title: str, found: search_pb2.FoundModel, texts: str) -> str:
    """What is said of a model, the important first: an encoder reads the beginning only."""
    named = " ".join(words_of(title.replace("-", " ")))
    properties = ", ".join([*found.tasks, *(tag for tag in found.tags if "=" not in tag)])
    parts = (named, found.summary, properties.replace("-", " "), texts)
    return ". ".join(part.strip() for part in parts if part.strip())
