"""The rows of an evaluation: what is asked, and what was wanted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tunesmith_trainer.data import Row
from tunesmith_trainer.failure import invalid_input
from tunesmith_trainer.seeds import Domain, permutation


@dataclass(frozen=True, slots=True)
class Question:
    """One row. `prompt` are the messages before the last assistant turn, which is the reference.

    A plain text asks nothing: its prompt is empty and the text is the reference, for likelihoods only.
    """

    row: Row
    prompt: tuple[dict[str, str], ...]
    reference: str | None

    @property
    def asks(self) -> bool:
        """Whether there is something to answer."""
        return bool(self.prompt)

    @property
    def last(self) -> str:
        """The last message of the prompt."""
        return self.prompt[-1]["content"] if self.prompt else ""


def choose(rows: Iterable[Row], most: int, seed: int) -> list[Question]:
    """At most `most` rows in the order of the data: all, or those that `seed` draws."""
    found = list(rows)
    if len(found) > most:
        found = [found[index] for index in sorted(permutation(seed, Domain.ROWS, 0, len(found))[:most])]
    if not found:
        raise invalid_input("DATASET_EMPTY", "data.jsonl has no rows", "give at least one row")
    return [_question(row) for row in found]


def _question(row: Row) -> Question:
    if not row.messages:
        return Question(row, (), row.text)
    turns = [index for index, message in enumerate(row.messages) if message["role"] == "assistant"]
    if not turns or not turns[-1]:
        return Question(row, row.messages, None)
    return Question(row, row.messages[: turns[-1]], row.messages[turns[-1]]["content"])
