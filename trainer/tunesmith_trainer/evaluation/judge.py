"""Another model as judge, behind an OpenAI-compatible endpoint that the node allows.

The node's file of judges says which addresses may be asked and where their keys lie, so that a job can
neither read a key nor send texts to an address of its own choosing.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith_trainer.evaluation.plan import ScorerPlan
from tunesmith_trainer.evaluation.questions import Question
from tunesmith_trainer.evaluation.verdict import Metric, Verdict
from tunesmith_trainer.failure import FailureClass, TrainerError, invalid_input

_INSTRUCTION = (
    "Rate how helpful and how correct the answer is, from 1 (useless) to 10 (perfect).\n\n"
    "Question:\n{prompt}\n\nAnswer:\n{answer}\n\nWanted answer, if there is one:\n{reference}\n\n"
    "Give your reasons in one sentence, then end with a line `SCORE: n`."
)
_SCORE = re.compile(r"SCORE:\s*(-?\d+(?:\.\d+)?)\s*$")
_FIELD = re.compile(r"\{(prompt|answer|reference)\}")
_MOST_BYTES = 1024 * 1024
_BACKOFF_SECONDS = 0.5
_MOST_WAIT_SECONDS = 20.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An endpoint that sends elsewhere would take the key along."""

    def redirect_request(self, *args: Any, **more: Any) -> None:
        """Follow nothing."""


@dataclass(frozen=True, slots=True)
class JudgeScorer:
    """Asks, parses strictly, tries again."""

    metrics: Sequence[Metric]
    url: str
    key: str
    model: str
    instruction: str
    bounds: tuple[float, float]
    max_retries: int
    seconds: float
    needs_reference: bool = False

    @classmethod
    def of(cls, plan: ScorerPlan, judges: Path | None) -> JudgeScorer:
        """The judge of a plan. Raises INVALID_INPUT when this node does not allow its address."""
        fields = plan.fields
        base_url = fields.text("base_url", required=True).rstrip("/")
        bounds = (fields.any_number("min_score", 1.0), fields.any_number("max_score", 10.0))
        if bounds[0] >= bounds[1]:
            raise fields.error("max_score", bounds[1], f"give more than min_score, {bounds[0]:g}")
        return cls(
            metrics=(Metric(plan.name),),
            url=f"{base_url}/chat/completions",
            key=_key(base_url, judges),
            model=fields.text("model", required=True),
            instruction=fields.text("instruction") or _INSTRUCTION,
            bounds=bounds,
            max_retries=fields.integer("max_retries", default=3),
            seconds=_seconds(fields.text("timeout")) or 60.0,
        )

    def judge(self, question: Question, answer: str) -> Verdict:
        """The score, with the judge's words; without one a note says why."""
        name = self.metrics[0].name
        said = {
            "prompt": "\n\n".join(f"{each['role']}: {each['content']}" for each in question.prompt),
            "answer": answer,
            "reference": question.reference or "",
        }
        text = _FIELD.sub(lambda found: said[found[1]], self.instruction)
        problem = ""
        for attempt in range(self.max_retries + 1):
            if attempt:
                time.sleep(min(_BACKOFF_SECONDS * 2 ** (attempt - 1), _MOST_WAIT_SECONDS))
            try:
                words = self._ask(text)
            except urllib.error.HTTPError as error:
                problem = f"the judge answered with status {error.code}"
                if error.code in (400, 401, 403, 404):
                    raise self._refused(problem) from error
                continue
            except (OSError, ValueError, KeyError, IndexError, TypeError, http.client.HTTPException) as error:
                problem = f"the judge cannot be asked: {type(error).__name__}: {error}"
                continue
            if (score := self._parse(words)) is not None:
                return Verdict({name: score}, notes={name: words[-2000:]})
            problem = f"the judge gave no score: {words[-200:]!r}"
        return Verdict(notes={name: problem[:2000]})

    def _parse(self, words: str) -> float | None:
        """The score at the very end, within its bounds; nothing else is one."""
        found = _SCORE.search(words.strip())
        score = float(found[1]) if found else None
        return score if score is not None and self.bounds[0] <= score <= self.bounds[1] else None

    def _ask(self, text: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=self.seconds) as response:
            data = response.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError("it answered with more than 1 MiB")
        return str(json.loads(data)["choices"][0]["message"]["content"])

    def _refused(self, problem: str) -> TrainerError:
        return TrainerError(
            FailureClass.USER_ERROR,
            "JUDGE_REFUSED",
            f"{problem} for the model {self.model} at {self.url}",
            "check the model's name, and the key in the node's file of judges",
        )


def _key(base_url: str, judges: Path | None) -> str:
    """The key for an address; empty where the node has none for it."""
    allowed: dict[str, Mapping[str, str]] = {}
    if judges is not None:
        try:
            listed = json.loads(judges.read_bytes())
            allowed = {str(item["base_url"]).rstrip("/"): item for item in listed}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainerError(
                FailureClass.INFRA,
                "JUDGES_UNREADABLE",
                f"the node's file of judges cannot be read: {type(error).__name__}",
                'it is a JSON list such as [{"base_url": "https://…/v1", "key_file": "…"}]',
            ) from error
    if base_url not in allowed:
        raise invalid_input(
            "JUDGE_NOT_ALLOWED",
            f"this node does not allow a judge at {base_url}",
            "ask the operator to list it in the file that TUNESMITH_AGENT_JUDGES names, or use one of "
            + (", ".join(sorted(allowed)) or "none so far"),
        )
    entry = allowed[base_url]
    if "key_file" in entry:
        try:
            return Path(entry["key_file"]).read_text().strip()
        except OSError as error:
            raise TrainerError(
                FailureClass.INFRA,
                "JUDGES_UNREADABLE",
                f"the key for {base_url} cannot be read: {error.strerror}",
            ) from error
    return os.environ.get(entry.get("key_env", ""), "")


def _seconds(text: str) -> float:
    """proto3 JSON writes a duration as `1.5s`."""
    return float(text.removesuffix("s")) if text else 0.0
