"""What training makes of rows, told without training: tokens, what is learnt of them, where they are cut.

    python -m tunesmith_trainer.render --model FOLDER [--template FOLDER] [--max-length N]

reads JSON lines `{"rows": [row, …], "detail": false}` and answers each with a line: a list with an object a
row, `tokens`, `trained` and `truncated`, with detail also `segments`, or `error`. The code is
that of training.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tunesmith_trainer.failure import TrainerError

_LONGEST_TEXT = 200_000


class Rendering:
    """Rows as a base model's tokenizer, its chat template and a prompt template make them."""

    def __init__(self, model: Path, template: Path | None, max_length: int, closing: ExitStack) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        from tunesmith_trainer.chat import ChatFormat
        from tunesmith_trainer.template import Renderer, Template

        logging.set_verbosity_error()
        tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        self._tokenizer, self._chat, self._max = tokenizer, ChatFormat(tokenizer), max_length
        self._renderer = closing.enter_context(Renderer(Template.load(template))) if template else None

    def some(self, rows: list[Mapping[str, Any]], detail: bool) -> list[dict[str, Any]]:
        """What each row becomes."""
        from tunesmith_trainer.data import Row

        made: list[Any] = []
        for row in rows:
            try:
                if self._renderer is not None:
                    made.append(Row(0, tuple(self._renderer.render(row)), ""))
                elif isinstance(row.get("messages"), list):
                    made.append(Row(0, tuple(row["messages"]), ""))
                elif isinstance(row.get("text"), str) and len(row) == 1:
                    made.append(Row(0, (), row["text"]))
                else:
                    made.append({"error": "rows of columns need a prompt template to become text"})
            except TrainerError as error:
                made.append({"error": error.failure.message})
        return [item if isinstance(item, dict) else self._one(item, detail) for item in made]

    def _one(self, row: Any, detail: bool) -> dict[str, Any]:
        from tunesmith_trainer.recipe.sft import _tokenize

        try:
            tokens, labels = next(iter(_tokenize([row], self._chat, self._tokenizer)))
        except TrainerError as error:
            return {"error": error.failure.message}
        kept, wanted = tokens[: self._max], labels[: self._max]
        if wanted:
            wanted = [False, *wanted[1:]]  # nothing stands before the first token
        found: dict[str, Any] = {
            "tokens": len(tokens),
            "trained": sum(wanted),
            "truncated": len(tokens) > self._max,
        }
        if detail:
            found["segments"] = self._segments(kept, wanted)
        return found

    def _segments(self, tokens: list[int], wanted: list[bool]) -> list[dict[str, Any]]:
        """The text in pieces that are learnt and pieces that are only read; split characters stay whole."""
        found: list[dict[str, Any]] = []
        begin = size = 0
        for index in range(1, len(tokens) + 1):
            if index < len(tokens) and wanted[index] == wanted[begin]:
                continue
            text = self._tokenizer.decode(tokens[begin:index], clean_up_tokenization_spaces=False)
            size += len(text)
            found.append({"text": text, "trained": wanted[begin]})
            if size > _LONGEST_TEXT:
                break
            begin = index
        return found


def main() -> None:
    """Answers lines until stdin ends."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    parser = argparse.ArgumentParser(prog="tunesmith_trainer.render", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--template", type=Path)
    parser.add_argument("--max-length", type=int, default=512)
    options = parser.parse_args()
    out = sys.stdout.buffer
    with ExitStack() as closing:
        try:
            rendering = Rendering(options.model, options.template, options.max_length, closing)
        except TrainerError as error:
            out.write(json.dumps({"error": error.failure.message}).encode() + b"\n")
            return
        except Exception as error:  # whatever stands in the files of a tokenizer
            out.write(json.dumps({"error": f"{type(error).__name__}: {error}"[:400]}).encode() + b"\n")
            return
        out.write(b'{"ready": true}\n')
        out.flush()
        for line in sys.stdin.buffer:
            asked = json.loads(line)
            out.write(json.dumps(rendering.some(asked["rows"], bool(asked.get("detail")))).encode() + b"\n")
            out.flush()


if __name__ == "__main__":
    main()
