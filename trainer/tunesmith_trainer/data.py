"""Training data: rows of data.jsonl, examples of tokens, and which example belongs to which step."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from tunesmith_trainer.failure import TrainerError, invalid_input
from tunesmith_trainer.run import Training
from tunesmith_trainer.seeds import Domain, permutation
from tunesmith_trainer.template import Renderer, Template

Tokens = npt.NDArray[np.int64]
MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One line of data.jsonl: a conversation, or a plain text when there are no messages."""

    line: int
    messages: tuple[dict[str, str], ...]
    text: str


class Item(Protocol):
    """A row of a micro-batch: one example, or several packed into one."""

    @property
    def inputs(self) -> Tokens:
        """What the model reads."""
        ...

    @property
    def positions(self) -> Tokens:
        """Where in `inputs` it is asked for the next token."""
        ...

    @property
    def targets(self) -> Tokens:
        """The tokens wanted there."""
        ...

    @property
    def starts(self) -> tuple[int, ...]:
        """Where in `inputs` each example begins; none sees what is before its own beginning."""
        ...


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens of one row. The model reads `tokens[:-1]`; at `positions` it is asked for the next token."""

    tokens: Tokens
    positions: Tokens

    @property
    def weight(self) -> int:
        """Label tokens: what the example counts in the loss."""
        return len(self.positions)

    @property
    def inputs(self) -> Tokens:
        """What the model reads."""
        return self.tokens[:-1]

    @property
    def targets(self) -> Tokens:
        """The tokens wanted at `positions`."""
        return self.tokens[self.positions + 1]

    @property
    def starts(self) -> tuple[int, ...]:
        """It begins where it begins."""
        return (0,)


@dataclass(frozen=True, slots=True)
class Packed:
    """Several examples in one row, or one whose inputs were altered."""

    inputs: Tokens
    positions: Tokens
    targets: Tokens
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch.

    input_ids (rows, longest): padded on the right with 0. No attention mask: in a causal model nothing
    before the padding can see it, and nothing is asked of the padding itself.
    positions (labels,): indices into the flattened input_ids. targets (labels,): the tokens wanted there.
    position_ids (rows, longest): count from 0 in each example of a packed row; None when no row is packed.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    weight: int
    position_ids: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        if device.type == "cpu":
            return self
        ids, at, wanted = (
            tensor.to(device, non_blocking=True) for tensor in (self.input_ids, self.positions, self.targets)
        )
        places = None if self.position_ids is None else self.position_ids.to(device, non_blocking=True)
        return Batch(ids, at, wanted, self.weight, places)


def rows(folder: Path, template: Path | None = None) -> Iterator[Row]:
    """The rows of a dataset folder, rendered by the prompt template in the folder `template` if there is one.

    Raises INVALID_INPUT naming the line of the first bad one.
    """
    if template is not None:
        yield from _rendered(folder, template)
        return
    for number, line in _lines(folder):
        yield _row(number, line)


def _rendered(folder: Path, template: Path) -> Iterator[Row]:
    places: deque[int] = deque()

    def raw() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in _lines(folder):
            places.append(number)
            yield f"data.jsonl line {number}", _object(number, line)

    with Renderer(Template.load(template)) as renderer:
        for messages in renderer.render_all(raw()):
            yield Row(places.popleft(), tuple(messages), "")


def _lines(folder: Path) -> Iterator[tuple[int, bytes]]:
    path = folder / "data.jsonl"
    try:
        file = path.open("rb")
    except OSError as error:
        raise invalid_input(
            "DATASET_INVALID", f"{path} cannot be opened: {error}", "a dataset folder holds data.jsonl"
        ) from error
    with file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _object(number: int, line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise _bad_row(number, f"is longer than {MAX_LINE_BYTES} bytes")
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise _bad_row(number, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _bad_row(number, "is not a JSON object")
    return value


def _row(number: int, line: bytes) -> Row:
    value = _object(number, line)
    if "messages" in value:
        return Row(number, _messages(number, value["messages"]), "")
    if isinstance(value.get("text"), str):
        return Row(number, (), value["text"])
    raise _bad_row(number, "has neither `messages` nor a text in `text`")


def _messages(number: int, value: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise _bad_row(number, "has `messages` that are not a list with entries")
    for message in value:
        if not isinstance(message, dict):
            raise _bad_row(number, "has a message that is not an object")
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                raise _bad_row(number, f"has a message whose `{name}` is {message.get(name)!r}, not a text")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _bad_row(number: int, what: str) -> TrainerError:
    return invalid_input(
        "DATA_ROW_INVALID",
        f"data.jsonl line {number} {what}"[:500],
        'write {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]} '
        'or {"text": "…"}',
    )


def split(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples: a function of the seed alone. Training keeps at least one."""
    if fraction == 0:
        return list(examples), []
    if len(examples) < 2:
        raise invalid_input(
            "TOO_FEW_EXAMPLES",
            f"training.eval_fraction is {fraction}, but there is only one example",
            "give more data, or set eval_fraction to 0",
        )
    count = min(max(1, round(len(examples) * fraction)), len(examples) - 1)
    order = permutation(seed, Domain.SPLIT, 0, len(examples))
    # Sorted, so that a held-out part leaves the rest in the order of the file.
    return [examples[i] for i in sorted(order[count:])], [examples[i] for i in sorted(order[:count])]


@dataclass(frozen=True, slots=True)
class Micro:
    """A micro-batch to come: its number over all epochs, the shard it belongs to, and its items."""

    index: int
    shard: int
    items: list[int]


@dataclass(slots=True)
class Course:
    """Which items make which step: a pure function of (seed, step), so a resume jumps in at any step.

    An item is an example, or several packed into one row. A step never reaches over the end of an epoch:
    the last step of an epoch may be smaller. Its micro-batches are dealt to the logical shards in turn.
    """

    training: Training
    num_items: int
    micro_per_step: int = field(init=False)
    micro_per_epoch: int = field(init=False)
    steps_per_epoch: int = field(init=False)
    total_steps: int = field(init=False)
    _epoch: int = field(init=False, default=-1)
    _order: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        training = self.training
        self.micro_per_step = training.gradient_accumulation_steps * training.logical_shards
        self.micro_per_epoch = math.ceil(self.num_items / training.micro_batch_size)
        self.steps_per_epoch = math.ceil(self.micro_per_epoch / self.micro_per_step)
        self.total_steps = training.max_steps or math.ceil(training.num_epochs * self.steps_per_epoch)

    def micro_batches(self, step: int) -> list[Micro]:
        """The micro-batches of a step, in the order of their numbers."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = permutation(self.training.seed, Domain.ORDER, epoch, self.num_items)
            self._epoch = epoch
        size, shards = self.training.micro_batch_size, self.training.logical_shards
        first = within * self.micro_per_step
        last = min(first + self.micro_per_step, self.micro_per_epoch)
        base = epoch * self.micro_per_epoch
        return [
            Micro(base + at, (at - first) % shards, self._order[at * size : (at + 1) * size])
            for at in range(first, last)
        ]

    def epoch_at(self, step: int) -> float:
        """Passes over the data after `step` steps."""
        return step / self.steps_per_epoch

    def starts_epoch(self, step: int) -> bool:
        """Whether a pass over the data begins with `step`."""
        return step % self.steps_per_epoch == 0
