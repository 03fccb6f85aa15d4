"""A process that checks blocks of JSON lines: headers and blocks in on stdin, results out on stdout.

    python -m tunesmith_registry.data.worker

Both ways a message is a line of JSON with sizes, then the bytes it announces. Our own children only.
"""

import gc
import sys
import threading
from array import array
from collections import Counter
from queue import Queue
from typing import Any, BinaryIO

import orjson

from tunesmith_kit import memory
from tunesmith_registry.data import blocks
from tunesmith_registry.data.checking import Checked, Rules


def send_block(to: BinaryIO, block: blocks.Block, rules: Rules) -> None:
    """Asks a worker to check a block."""
    head = {
        "first": block.first,
        "too_long": block.too_long,
        "size": len(block.data),
        "mapping": dict(rules.mapping),
        "row_format": rules.row_format,
    }
    to.write(orjson.dumps(head) + b"\n")
    to.write(block.data)
    to.flush()


def receive(source: BinaryIO) -> Checked:
    """Reads what a worker found. Raises `EOFError` when it ended."""
    line = source.readline()
    if not line:
        raise EOFError("the worker ended")
    head: dict[str, Any] = orjson.loads(line)
    text, marks, places = (source.read(size) for size in head["sizes"])
    out = Checked(
        text=text,
        num_read=head["num_read"],
        row_format=head["row_format"],
        columns=head["columns"],
        unused=set(head["unused"]),
        found=[tuple(item) for item in head["found"]],
        counts=Counter({(reason, error): count for reason, error, count in head["counts"]}),
    )
    out.marks.frombytes(marks)
    out.places.frombytes(places)
    return out


def _answer(to: BinaryIO, out: Checked) -> None:
    parts = (out.text, _bytes(out.marks), _bytes(out.places))
    head = {
        "sizes": [len(part) for part in parts],
        "num_read": out.num_read,
        "row_format": out.row_format,
        "columns": out.columns,
        "unused": sorted(map(str, out.unused))[:100],
        "found": out.found,
        "counts": [(reason, error, count) for (reason, error), count in out.counts.items()],
    }
    to.write(orjson.dumps(head) + b"\n")
    for part in parts:
        to.write(part)
    to.flush()


def _bytes(numbers: "array[int]") -> bytes:
    return numbers.tobytes()


def _read(source: BinaryIO, to: "Queue[tuple[blocks.Block, Rules] | None]") -> None:
    """Reads blocks ahead of the check."""
    while line := source.readline():
        head: dict[str, Any] = orjson.loads(line)
        block = blocks.Block(head["first"], source.read(head["size"]), head["too_long"])
        to.put((block, Rules(head["mapping"], head["row_format"])))
    to.put(None)


def main() -> None:
    """Answers blocks until stdin ends."""
    gc.disable()  # rows hold no cycles; collecting costs a tenth of the time
    memory.keep_freed()
    asked: Queue[tuple[blocks.Block, Rules] | None] = Queue(1)
    threading.Thread(target=_read, args=(sys.stdin.buffer, asked), daemon=True).start()
    while (item := asked.get()) is not None:
        _answer(sys.stdout.buffer, blocks.check(*item))


if __name__ == "__main__":
    main()
