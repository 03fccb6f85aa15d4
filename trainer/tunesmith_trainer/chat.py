"""Conversations as tokens, with the spans that an assistant wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tunesmith_trainer.data import Row
from tunesmith_trainer.failure import TrainerError, invalid_input

Messages = Sequence[dict[str, str]]

# For base models without a chat template. It uses no special token but the end of text, which every causal
# model has; it is saved with the tokenizer of a full fine-tuning so that serving renders the same.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] + eos_token + '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, with the half-open character spans whose tokens count in the loss."""

    text: str
    spans: tuple[tuple[int, int], ...]


class ChatFormat:
    """Renders conversations with a tokenizer's template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if tokenizer.chat_template is None:
            tokenizer.chat_template = DEFAULT_TEMPLATE
        self._tokenizer = tokenizer
        self._special = tuple(str(token) for token in tokenizer.get_added_vocab())

    def render(self, row: Row) -> Rendered:
        """Find the assistant's spans by rendering the conversation up to each turn and with it.

        This needs nothing of the template but that it writes turns one after the other, where the
        `{% generation %}` mark is missing in nearly all published templates.
        """
        messages = row.messages
        text = self._apply(row, messages, False)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._apply(row, messages[:index], True) if index else ""
            through = text if index == len(messages) - 1 else self._apply(row, messages[: index + 1], False)
            start, end = _common(before, text), _common(through, text)
            if start < end:
                spans.append((start, start + len(self._turn(text[start:end]))))
        return Rendered(text, tuple(spans))

    def prompt(self, text: str) -> str:
        """What the model is given to answer a user's text."""
        return str(
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
        )

    def ask(self, line: int, messages: Messages) -> str:
        """What the model is given to answer a conversation; `line` is that of the data, for errors."""
        return self._apply(Row(line, tuple(messages), ""), messages, True)

    def _turn(self, text: str) -> str:
        # The newline many templates write after the end of turn only separates turns; it is not learnt.
        bare = text.rstrip()
        return bare if bare.endswith(self._special) else text

    def _apply(self, row: Row, messages: Messages, ask: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=ask
            )
        except Exception as error:  # a template raises what it likes
            raise _refused(row, error) from error
        return str(text)


def _common(left: str, right: str) -> int:
    # Only templates that rewrite earlier turns need the slow way, character by character.
    if right.startswith(left):
        return len(left)
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(right))


def _refused(row: Row, error: Exception) -> TrainerError:
    return invalid_input(
        "CHAT_TEMPLATE_REFUSED",
        f"data.jsonl line {row.line}: the base model's chat template refuses the conversation: {error}"[:500],
        "use the roles and the order the template allows, most often system, then user and assistant in turn",
    )
