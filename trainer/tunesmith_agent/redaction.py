"""Secrets are taken out of logs before anything leaves the node.

Secret is what an environment variable or a setting with such a name holds, wherever it stands in a line, and
what has the form of a well-known token.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

MARK = "[redacted]"
_SHORTEST = 6  # shorter values stand in ordinary words
_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASS|CREDENTIALS?|PAT|APIKEY|AUTH|DSN|DATABASE_URL)(?:S)?$"
    r"|SECRET|PASSWORD",
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:([^/\s@]+)@", re.IGNORECASE)
# A form of tokens, and what stands in each of them: only where that is seen the form is looked for.
_FORMS = {
    "hf_": r"hf_[A-Za-z0-9]{16,}",
    "sk-": r"sk-[A-Za-z0-9_-]{16,}",
    "gh": r"gh[pousr]_[A-Za-z0-9]{20,}",
    "github_pat_": r"github_pat_[A-Za-z0-9_]{20,}",
    "glpat-": r"glpat-[A-Za-z0-9_-]{16,}",
    "xox": r"xox[abprs]-[A-Za-z0-9-]{10,}",
    "AKIA": r"AKIA[A-Z0-9]{16}",
    "ASIA": r"ASIA[A-Z0-9]{16}",
    "AIza": r"AIza[A-Za-z0-9_-]{30,}",
    "eyJ": r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+",
    "earer ": r"(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{8,}",
    "://": r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)",
}
_COMPILED = {hint: re.compile(form) for hint, form in _FORMS.items()}


class Redactor:
    """Takes known values and well-known forms out of texts.

    Args:
        values: what is secret, letter by letter. Values of several lines count line by line.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        parts = {line.strip() for value in values for line in value.splitlines()}
        # The longest first: one may be the beginning of another.
        self._known = sorted((part for part in parts if len(part) >= _SHORTEST), key=len, reverse=True)
        self.longest = len(self._known[0]) if self._known else 0

    @classmethod
    def of(cls, environment: Mapping[str, str], settings: object = None) -> "Redactor":
        """Returns one for an environment and the settings of a process."""
        return cls([*_of_environment(environment), *_of_settings(settings)])

    def clean(self, text: str) -> str:
        """Returns the text with a mark in place of each secret; lines stay lines."""
        for value in self._known:
            if value in text:
                text = text.replace(value, MARK)
        for hint, form in _COMPILED.items():
            if hint in text:
                text = form.sub(MARK, text)
        return text


def _of_environment(environment: Mapping[str, str]) -> Iterable[str]:
    for name, value in environment.items():
        if _NAME.search(name.upper()) and not value.isdigit():
            yield value
        yield from _ADDRESS.findall(value)


def _of_settings(settings: Any) -> Iterable[str]:
    if settings is None:
        return
    for each in fields(settings):
        value = getattr(settings, each.name)
        if each.metadata.get("secret") and isinstance(value, str):
            yield value
