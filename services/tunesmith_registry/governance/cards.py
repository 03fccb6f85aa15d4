"""Model cards in the form Hugging Face reads: YAML metadata, then Markdown.

Everything but the sections people wrote is a fact of the registry; cards of the same facts are equal.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import cards_pb2, models_pb2
from tunesmith.errors import NotFound
from tunesmith_registry import aliases, store
from tunesmith_registry.evaluations.tables import EVALUATION_SCORES
from tunesmith_registry.governance import records, sections
from tunesmith_registry.transitions import word

# Properties of the manifest that the card tells elsewhere; what is left tells of the environment.
_TOLD = {
    "adapter", "base_model", "base_model_digest", "best_eval_loss", "dataset_digest", "epoch", "eval_loss",
    "final_loss", "first_loss", "method", "source", "step", "steps",
}  # fmt: skip
_TASK = "text-generation"


@dataclass(frozen=True)
class Facts:
    """What a card is made of."""

    version: models_pb2.ModelVersion
    base: models_pb2.BaseModel | None
    written: cards_pb2.CardSections
    spec: Mapping[str, Any]
    dataset_rows: int
    scores: Sequence[Mapping[str, Any]]


def card(session: Session, version: models_pb2.ModelVersion) -> cards_pb2.ModelCard:
    """Returns the card of a version."""
    facts = gather(session, version)
    metadata = metadata_of(facts)
    shown = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=110)
    return cards_pb2.ModelCard(
        name=version.name,
        markdown=f"---\n{shown}---\n\n{_markdown(facts)}",
        metadata_json=json.dumps(metadata, sort_keys=True, ensure_ascii=False),
        sections=facts.written,
    )


def gather(session: Session, version: models_pb2.ModelVersion) -> Facts:
    """Reads everything a card says."""
    _, project, _, model_id, *_ = version.name.split("/")
    aliases.named(session, project, [version])
    record = records.of_version(session, version.job)
    of = EVALUATION_SCORES.c
    query = select(EVALUATION_SCORES).where(of.project == project, of.target == version.name)
    rows = session.execute(query.order_by(of.dataset_version, of.metric, of.create_time)).mappings()
    newest = {(row["dataset_version"], row["metric"]): dict(row) for row in rows}
    base, num_rows = None, 0
    with suppress(NotFound):  # deleted since: its name and digest are told
        base = store.base_model(session, project, version.base_model.rpartition("/")[2])
    if version.dataset_version:
        _, _, _, dataset_id, _, number = version.dataset_version.split("/")
        with suppress(NotFound):
            num_rows = store.resolve_dataset(session, project, f"{dataset_id}@{number}").num_rows
    return Facts(
        version,
        base,
        sections.read(session, project, model_id),
        json.loads(record.spec) if record else {},
        num_rows,
        list(newest.values()),
    )


def metadata_of(facts: Facts) -> dict[str, Any]:
    """Returns the YAML metadata, with the keys the hub knows."""
    version, written, base = facts.version, facts.written, facts.base
    properties = version.manifest.properties
    license_ = written.license or (base.license if base else "")
    found: dict[str, Any] = {
        "library_name": "transformers" if properties.get("adapter") == "full" else "peft",
        "license": license_.lower() if license_ else None,
        "language": list(written.languages or (base.languages if base else [])),
        "pipeline_tag": _TASK,
        "base_model": _source(facts),
        "base_model_relation": "finetune" if properties.get("adapter") == "full" else "adapter",
        "datasets": [_short(version.dataset_version)] if version.dataset_version else [],
        "tags": sorted({"tunesmith", *written.tags, *written.tasks, *_labels(version)}),
        "model-index": _model_index(facts),
    }
    return {key: value for key, value in found.items() if value}


def _source(facts: Facts) -> str:
    return facts.version.base_model.rpartition("/")[2]


def _labels(version: models_pb2.ModelVersion) -> list[str]:
    return [f"{key}={value}" for key, value in version.labels.items()]


def _model_index(facts: Facts) -> list[dict[str, Any]]:
    results = [
        {
            "task": {"type": _TASK},
            "dataset": {"name": _short(row["dataset_version"]), "type": "tunesmith"},
            "metrics": [{"type": row["metric"], "value": float(row["value"])}],
        }
        for row in facts.scores
        if math.isfinite(row["value"])
    ]
    if not results:
        return []
    return [{"name": facts.version.name.split("/")[3], "results": results}]


def _short(name: str) -> str:
    parts = name.split("/")
    return f"{parts[3]}@{parts[5]}" if len(parts) == 6 else name


def _markdown(facts: Facts) -> str:
    version, written = facts.version, facts.written
    model_id = version.name.split("/")[3]
    parts = [f"# {model_id}, version {version.version}", written.summary or _opening(facts)]
    if version.description:
        parts.append(version.description)
    parts += [
        "## Intended use\n\n" + (written.intended_use or "Nobody has written it down yet."),
        "## Limitations\n\n" + (written.limitations or "Nobody has written them down yet."),
        "## Where it comes from\n\n" + _table(("", ""), _origin(facts)),
    ]
    if facts.spec:
        parts.append("## How it was trained\n\n" + _table(("setting", "value"), _settings(facts.spec)))
    if version.metrics:
        parts.append("## Training metrics\n\n" + _table(_METRIC_HEAD, _metrics(version)))
    if facts.scores:
        parts.append("## Evaluation\n\n" + _table(_SCORE_HEAD, [_score(row) for row in facts.scores]))
    if environment := _environment(version.manifest.properties):
        parts.append("## Environment\n\n" + _table(("", ""), environment))
    parts.append("## Use\n\n" + _usage(facts))
    files = [(f"`{f.path}`", f"{f.size_bytes:,}", f"`{f.sha256}`") for f in version.manifest.files]
    parts.append("## Files\n\n" + _table(("file", "bytes", "SHA-256"), files))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


_METRIC_HEAD = ("metric", "first value", "best value", "last value")
# Properties of the manifest in which a trainer noted them.
_NOTED = {"train/loss": ("first_loss", ""), "eval/loss": ("", "best_eval_loss")}


def _metrics(version: models_pb2.ModelVersion) -> list[tuple[str, ...]]:
    said = version.manifest.properties
    rows = []
    for name, value in sorted(version.metrics.items()):
        noted = (_number(said.get(key, "")) for key in _NOTED.get(name, ("", "")))
        rows.append((f"`{name}`", *noted, f"{value:.6g}"))
    return rows


def _number(text: str) -> str:
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return ""


_SCORE_HEAD = ("dataset", "metric", "value", "95 % interval", "samples")


def _score(row: Mapping[str, Any]) -> tuple[str, ...]:
    interval = f"{row['ci_low']:.4g} to {row['ci_high']:.4g}"
    return (
        _short(row["dataset_version"]),
        f"`{row['metric']}`",
        f"{row['value']:.4g}",
        interval,
        f"{row['num_samples']:,}",
    )


def _opening(facts: Facts) -> str:
    how = "A full fine-tuning" if facts.version.manifest.properties.get("adapter") == "full" else "An adapter"
    data = f" on `{_short(facts.version.dataset_version)}`" if facts.version.dataset_version else ""
    return f"{how} of `{_source(facts)}`{data}, registered by Tunesmith."


def _origin(facts: Facts) -> list[tuple[str, ...]]:
    version = facts.version
    rows = facts.dataset_rows
    data = _short(version.dataset_version) + (f", {rows:,} rows" if rows else "")
    facts_shown = [
        ("version", f"`{version.name}`"),
        ("digest", f"`{version.digest}`"),
        ("stage", word(version.stage)),
        ("aliases", ", ".join(version.aliases)),
        ("base model", f"`{_source(facts)}`" + (f", {facts.base.architecture}" if facts.base else "")),
        (
            "base model's digest",
            _code(version.base_model_digest or (facts.base.digest if facts.base else "")),
        ),
        ("data", data),
        ("data's digest", _code(version.dataset_digest)),
        ("job", _code(version.job)),
        ("converted from", _code(version.derived_from)),
        ("licence", facts.written.license or (facts.base.license if facts.base else "")),
        ("registered", version.create_time.ToJsonString()),
    ]
    return [pair for pair in facts_shown if pair[1]]


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _settings(spec: Mapping[str, Any], prefix: str = "") -> list[tuple[str, ...]]:
    """Returns the leaves of a job's spec as paths and values."""
    rows: list[tuple[str, ...]] = []
    for key, value in sorted(spec.items()):
        if isinstance(value, Mapping):
            rows += _settings(value, f"{prefix}{key}.")
        else:
            shown = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)
            rows.append((f"`{prefix}{key}`", shown))
    return rows


def _environment(properties: Mapping[str, str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for key, value in sorted(properties.items()):
        if key in _TOLD:
            continue
        if value.startswith("{"):
            with suppress(ValueError, RecursionError):
                rows += _settings(json.loads(value), f"{key}.")
                continue
        rows.append((f"`{key}`", value))
    return rows


def _usage(facts: Facts) -> str:
    base = _source(facts)
    if facts.version.manifest.properties.get("adapter") == "full":
        code = (
            'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
        )
        return f"```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n{code}\n```"
    return (
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "FOLDER")\n```'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """A cell in one line: what people wrote may hold bars and line breaks."""
    return " ".join(text.split()).replace("|", "\\|")
