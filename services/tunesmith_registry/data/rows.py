"""What a row of training data may look like, and its canonical form.

Accepted rows: `messages` (a conversation), `conversations` (as ShareGPT has it), `prompt` and `completion`,
`instruction`, `input` and `output`, `question` and `answer`, `prompt`, `chosen` and `rejected` (a
preference), `text` with or without `label`; and, when the import says `record`, any columns. The canonical
form is what the digest of a dataset is made of, so it never changes for rows that were accepted once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

MESSAGES, PREFERENCE, TEXT, CLASSIFICATION, RECORD = (
    "messages", "preference", "text", "classification", "record",
)  # fmt: skip
FORMATS = (MESSAGES, PREFERENCE, TEXT, CLASSIFICATION, RECORD)
# What a trainer understands without a prompt template.
TRAINABLE = (MESSAGES, TEXT)
_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES = {**_ROLES, "human": "user", "gpt": "assistant", "model": "assistant"}
_SHAPES = (
    "messages | prompt, completion | instruction, output | question, answer | prompt, chosen, rejected "
    "| text | text, label"
)
_NEEDS_ONE = f"a row needs one of: {_SHAPES}; or import any columns as `record` and render them by a template"
_DEEPEST = 64

Turn = dict[str, str]


class RowError(Exception):
    """A row cannot be used: which field, what it held, what is wrong and what to do."""

    def __init__(self, reason: str, field_name: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.reason, self.field_name, self.value = reason, field_name, value
        self.problem, self.remedy = problem, remedy


@dataclass(frozen=True, slots=True)
class Normal:
    """A row in its canonical form."""

    row_format: str
    body: Mapping[str, Any]
    used: frozenset[str]
    num_characters: int
    has_empty_answer: bool


def normalise(fields: Mapping[str, Any], row_format: str = "") -> Normal:
    """Brings a row into its canonical form, into that of `row_format` when one is wanted.

    Raises:
        RowError: the row has no such form.
    """
    if row_format == RECORD:
        return _from_record(fields)
    builders = [item for item in _BUILDERS if row_format in ("", item[0])]
    for _, needed, build in builders:
        if all(fields.get(name) is not None for name in needed):
            return build(fields)
    for shape, needed, _ in builders:
        if shape == CLASSIFICATION and not row_format:
            continue  # a text alone lacks nothing
        present = [name for name in needed if name in fields]
        if present and (len(needed) > 1 or row_format):
            lacking = next(name for name in needed if fields.get(name) is None)
            raise RowError("FIELD_MISSING", lacking, "", f"is missing beside {present[0]}", _NEEDS_ONE)
    found = ", ".join(sorted(map(str, fields)))[:200]
    wanted = f"has none of the fields of {row_format}" if row_format else "has none of the known fields"
    raise RowError("SHAPE_UNKNOWN", "", found, wanted, _NEEDS_ONE)


def _conversation(turns: list[Turn], used: frozenset[str]) -> Normal:
    size, answers, empty = 0, 0, False
    for turn in turns:
        text = turn["content"]
        size += len(text)
        if turn["role"] == "assistant":
            answers += 1
            empty = empty or not text or text.isspace()
    if not answers:
        raise RowError(
            "ANSWER_MISSING",
            "messages",
            turns[-1]["role"],
            "has no answer to learn from",
            "add an assistant message",
        )
    return Normal(MESSAGES, {"messages": turns}, used, size, empty)


_ONLY_MESSAGES = frozenset({"messages"})
_ONLY_CONVERSATIONS = frozenset({"conversations"})
_TURN = ["role", "content"]


def _from_messages(fields: Mapping[str, Any]) -> Normal:
    value = fields["messages"]
    if type(value) is list and value:
        for turn in value:
            if type(turn) is not dict or [*turn] != _TURN:
                break
            role = turn["role"]
            if type(role) is not str or role not in _ROLES or type(turn["content"]) is not str:
                break
        else:  # canonical as it is: nine rows in ten, at a third of the time
            return _conversation(value, _ONLY_MESSAGES)
    return _conversation(turns_of(value, "messages", "role", "content", _ROLES), _ONLY_MESSAGES)


def _from_sharegpt(fields: Mapping[str, Any]) -> Normal:
    turns = turns_of(fields["conversations"], "conversations", "from", "value", _SHAREGPT_ROLES)
    return _conversation(turns, _ONLY_CONVERSATIONS)


def turns_of(
    value: object,
    name: str,
    role_name: str = "role",
    text_name: str = "content",
    roles: Mapping[str, str] = _ROLES,
) -> list[Turn]:
    """The turns of a conversation in canonical form; raises `RowError` naming the turn."""
    if not isinstance(value, list) or not value:
        raise RowError(
            "FIELD_TYPE", name, value, "must be a list of messages", f'write [{{"{role_name}": …}}, …]'
        )
    turns = []
    for index, item in enumerate(value):
        place = f"{name}[{index}]"
        if not isinstance(item, Mapping):
            raise RowError(
                "FIELD_TYPE",
                place,
                item,
                "must be an object",
                f'write {{"{role_name}": …, "{text_name}": …}}',
            )
        role, text = item.get(role_name), item.get(text_name)
        if not isinstance(role, str) or role not in roles:
            raise RowError(
                "ROLE_UNKNOWN", f"{place}.{role_name}", role, "is no known role", f"use {', '.join(roles)}"
            )
        if not isinstance(text, str):
            raise RowError("FIELD_TYPE", f"{place}.{text_name}", text, "must be text", "write a string")
        turns.append({"role": roles[role], "content": text})
    return turns


def _text(fields: Mapping[str, Any], name: str, blank: bool = False) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise RowError("FIELD_TYPE", name, value, "must be text", "write a string")
    if not blank and not value.strip():
        raise RowError("FIELD_EMPTY", name, value, "is empty", "fill it or drop the row")
    return value


def _pair(question: str, answer: str, more: str = "") -> Callable[[Mapping[str, Any]], Normal]:
    def build(fields: Mapping[str, Any]) -> Normal:
        asked, used = _text(fields, question), {question, answer}
        if more and fields.get(more):
            asked, used = f"{asked}\n\n{_text(fields, more)}", used | {more}
        reply = _text(fields, answer, blank=True)
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
        return _conversation(turns, frozenset(used | ({more} if more in fields else set())))

    return build


def _from_preference(fields: Mapping[str, Any]) -> Normal:
    chosen, rejected = _answer(fields, "chosen"), _answer(fields, "rejected")
    prompt = _question(fields)
    if chosen == rejected:
        raise RowError(
            "PAIR_SAME", "rejected", rejected, "is the same as chosen", "drop the row: nothing is preferred"
        )
    body = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    size = sum(map(len, body.values()))
    used = frozenset({"prompt", "chosen", "rejected"})
    return Normal(PREFERENCE, body, used, size, not chosen.strip())


def _answer(fields: Mapping[str, Any], name: str) -> str:
    """An answer as text, or the last message of a conversation."""
    if not isinstance(fields[name], list):
        return _text(fields, name, blank=True)
    last = turns_of(fields[name], name)[-1]
    if last["role"] != "assistant":
        raise RowError(
            "ANSWER_MISSING",
            name,
            last["role"],
            "does not end with an answer",
            "end it with an assistant message",
        )
    return last["content"]


def _question(fields: Mapping[str, Any]) -> str:
    """The prompt as text; of a conversation its one message of the user."""
    value = fields.get("prompt")
    if isinstance(value, str):
        return _text(fields, "prompt")
    name, before = ("prompt", value) if value is not None else ("chosen", fields["chosen"])
    turns = turns_of(before, name)
    asked = [turn["content"] for turn in turns if turn["role"] == "user"]
    if len(asked) != 1 or not asked[0].strip():
        raise RowError(
            "FIELD_TYPE",
            name,
            value,
            "has not exactly one message of the user",
            "give the prompt as one text",
        )
    return asked[0]


def _from_text(fields: Mapping[str, Any]) -> Normal:
    text = _text(fields, "text")
    return Normal(TEXT, {"text": text}, frozenset({"text"}), len(text), False)


def _from_labelled(fields: Mapping[str, Any]) -> Normal:
    text, label = _text(fields, "text"), fields["label"]
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, str | int) or (isinstance(label, str) and not label.strip()):
        raise RowError(
            "FIELD_TYPE", "label", label, "must be a word or a whole number", "give each row one label"
        )
    name = str(label).lower() if isinstance(label, bool) else str(label)
    body = {"text": text, "label": name}
    return Normal(CLASSIFICATION, body, frozenset({"text", "label"}), len(text), False)


def _from_record(fields: Mapping[str, Any]) -> Normal:
    if not fields:
        raise RowError("ROW_EMPTY", "", "", "has no columns", "drop the row")
    body, size = {}, 0
    for name, value in fields.items():
        body[str(name)] = plain(value, str(name))
        size += len(value) if isinstance(value, str) else 8
    if not size or all(value in (None, "") for value in body.values()):
        raise RowError("ROW_EMPTY", "", "", "has only empty columns", "drop the row")
    return Normal(RECORD, body, frozenset(fields), size, False)


def plain(value: Any, place: str, depth: int = 0) -> Any:
    """A value as JSON has it; raises `RowError` for what it has not (bytes, NaN), for deep nesting."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RowError(
                "NUMBER_NOT_FINITE", place, value, "is not a finite number", "leave the column empty there"
            )
        return value
    if depth >= _DEEPEST:
        raise RowError("ROW_TOO_DEEP", place, "", f"is nested deeper than {_DEEPEST}", "flatten the column")
    if isinstance(value, Mapping):
        return {str(name): plain(item, f"{place}.{name}", depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{place}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, date | datetime | time | Decimal):
        return str(value)
    raise RowError(
        "FIELD_TYPE",
        place,
        type(value).__name__,
        f"holds {type(value).__name__}, which is no text or number",
        "leave the column out; objects of programs are never read",
    )


_BUILDERS: tuple[tuple[str, tuple[str, ...], Callable[[Mapping[str, Any]], Normal]], ...] = (
    (MESSAGES, ("messages",), _from_messages),
    (MESSAGES, ("conversations",), _from_sharegpt),
    (PREFERENCE, ("chosen", "rejected"), _from_preference),
    (MESSAGES, ("prompt", "completion"), _pair("prompt", "completion")),
    (MESSAGES, ("instruction", "output"), _pair("instruction", "output", "input")),
    (MESSAGES, ("question", "answer"), _pair("question", "answer")),
    (CLASSIFICATION, ("text", "label"), _from_labelled),
    (TEXT, ("text",), _from_text),
)
KNOWN = frozenset({"input", "prompt"}.union(*(needed for _, needed, _ in _BUILDERS)))
