"""What a state belongs to. Going on with any of it changed would give other bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith_trainer import artifact
from tunesmith_trainer.failure import resume_mismatch

_DIVISOR = "micro_batch_divisor"
_TEMPLATE = "prompt_template_digest"
_WAIVED_BY_FORK = frozenset({"spec_digest", "dataset_digest", _TEMPLATE})


@dataclass(frozen=True, slots=True)
class Identity:
    """Digests of the inputs, and the fingerprint of the environment (environment.py)."""

    spec_digest: str
    base_model_digest: str
    dataset_digest: str
    environment: Mapping[str, str]
    spec: Mapping[str, Any]
    prompt_template_digest: str = ""

    @property
    def properties(self) -> dict[str, str]:
        """The same as texts, for a manifest."""
        return {
            **self._template,
            "spec_digest": self.spec_digest,
            "base_model_digest": self.base_model_digest,
            "dataset_digest": self.dataset_digest,
            "fingerprint": artifact.canonical_json(dict(self.environment)).decode(),
        }

    @property
    def record(self) -> dict[str, Any]:
        """The same as JSON, for a state's record."""
        return {
            **self._template,
            "spec_digest": self.spec_digest,
            "base_model_digest": self.base_model_digest,
            "dataset_digest": self.dataset_digest,
            "environment": dict(self.environment),
            "spec": dict(self.spec),
        }

    @property
    def _template(self) -> dict[str, str]:
        # Left out without a template, so that what was made before there were templates is still the same.
        return {_TEMPLATE: self.prompt_template_digest} if self.prompt_template_digest else {}

    def owns(self, saved: Mapping[str, Any]) -> bool:
        """Whether nothing at all differs."""
        return not list(self._inputs(saved)) and not list(self._environment(saved))

    def check(self, saved: Mapping[str, Any], *, forked: bool, accept_drift: bool) -> list[str]:
        """What differs and is accepted, as `item: saved -> now`.

        Raises RESUME_MISMATCH naming the first item that differs and is not accepted. A fork may have another
        spec and other data; micro-batches may be divided, for whoever divides them says so.
        """
        for name, before, now in self._inputs(saved):
            if not (forked and name in _WAIVED_BY_FORK):
                detail = "; ".join(_changes(saved.get("spec"), self.spec)) if name == "spec_digest" else ""
                raise resume_mismatch(name, before, now, detail)
        drift = []
        for name, before, now in self._environment(saved):
            if not (accept_drift or name == _DIVISOR):
                raise resume_mismatch(f"fingerprint.{name}", before, now)
            drift.append(f"{name}: {_shown(before)} -> {_shown(now)}")
        return drift

    def _inputs(self, saved: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        for name in ("base_model_digest", "dataset_digest", "spec_digest"):
            if saved.get(name) != getattr(self, name):
                yield name, saved.get(name), getattr(self, name)
        if saved.get(_TEMPLATE, "") != self.prompt_template_digest:
            yield _TEMPLATE, saved.get(_TEMPLATE), self.prompt_template_digest or None

    def _environment(self, saved: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        before = saved.get("environment") or {}
        for name in sorted({*before, *self.environment}):
            if before.get(name) != self.environment.get(name):
                yield name, before.get(name), self.environment.get(name)


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _changes(before: Any, now: Any, path: str = "spec") -> Iterator[str]:
    """The fields in which two specs differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            yield from _changes(before.get(name), now.get(name), f"{path}.{name}")
    elif before is not None and before != now:
        yield f"{path}: {before} -> {_shown(now)}"
