"""Real data for the demo: the English dialogues of the `chatterbot-corpus` package (BSD) as chat messages.

python examples/dialogues.py OUT.jsonl
"""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

# Left out: ten rows repeated a hundred times (tech_support), and a row split into letters (trivia).
_LEFT_OUT = {"tech_support.yml", "trivia.yml"}


def corpus() -> Path:
    """Returns the folder of the installed corpus."""
    spec = importlib.util.find_spec("chatterbot_corpus")
    if spec is None or spec.origin is None:
        raise SystemExit("chatterbot-corpus is not installed: make setup")
    return Path(spec.origin).parent / "data" / "english"


def dialogues(folder: Path) -> Iterator[list[dict[str, str]]]:
    """Yields each distinct dialogue once: question and answer in turn, ending with an answer."""
    seen: set[tuple[str, ...]] = set()
    for path in sorted(folder.glob("*.yml")):
        if path.name in _LEFT_OUT:
            continue
        for turns in yaml.safe_load(path.read_text())["conversations"]:
            texts = tuple(str(turn).strip() for turn in turns[: len(turns) // 2 * 2])
            if len(texts) < 2 or min(map(len, texts)) < 2 or texts in seen:
                continue
            seen.add(texts)
            roles = ("user", "assistant")
            yield [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def write(out: Path) -> int:
    """Writes the dialogues as JSON lines and returns their number."""
    rows = [json.dumps({"messages": messages}, ensure_ascii=False) for messages in dialogues(corpus())]
    out.write_text("\n".join(rows) + "\n")
    return len(rows)


if __name__ == "__main__":
    print(f"{write(Path(sys.argv[1]))} dialogues")  # noqa: T201
