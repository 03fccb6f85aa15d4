"""A trainer's log in chunks: levels, steps, no secrets, and whatever lies in the file."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_agent.levels import LevelReader, level_of
from tunesmith_agent.logs import LogTail
from tunesmith_agent.redaction import Redactor

MIB = 1024 * 1024


def tail(path: Path, redactor: Redactor | None = None, step: Callable[[], int] = lambda: 0) -> LogTail:
    return LogTail(path, "job", 1, 0, redactor, step)


def chunks(log: LogTail, ended: bool = True) -> list[events_pb2.LogChunk]:
    """All that can be read now; each chunk must fit a message and adjoin the one before."""
    found = []
    at = log.offset
    while (chunk := log.read(ended)) is not None:
        assert chunk.offset == at
        assert chunk.ByteSize() < MIB
        assert len(chunk.lines) == len(chunk.line_offsets) == len(chunk.levels) == len(chunk.steps)
        at += chunk.num_bytes
        found.append(chunk)
    return found


def texts(found: list[events_pb2.LogChunk]) -> list[str]:
    return [line for chunk in found for line in chunk.lines]


def short(level: events_pb2.LogLevel.ValueType) -> str:
    return events_pb2.LogLevel.Name(level).removeprefix("LOG_LEVEL_")


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("2026-01-01 10:00:00,123 - root - INFO - hello", "INFO"),
        ("[2026-01-01 10:00:00] WARNING something", "WARNING"),
        ("DEBUG:urllib3:GET /", "DEBUG"),
        ("E0102 15:04:05.123 1 file.cc:1] bad", "ERROR"),
        ('{"level": "error", "msg": "x"}', "ERROR"),
        ('{"time": 1, "level": 30}', "WARNING"),
        ("ts=1 level=fatal msg=x", "CRITICAL"),
        ("node:1:2 [0] NCCL WARN x", "WARNING"),
        ("ValueError: nope", "ERROR"),
        ("torch.OutOfMemoryError: CUDA out of memory", "ERROR"),
        ("file.py:12: UserWarning: old", "WARNING"),
        ("Error: command failed", "ERROR"),
        ("Segmentation fault (core dumped)", "ERROR"),
        ("step 5 loss 1.2", "UNSPECIFIED"),
        ("no error here: all is fine", "UNSPECIFIED"),
        ("INFORMATION about ERRORS", "UNSPECIFIED"),
        ("", "UNSPECIFIED"),
    ],
)
def test_a_line_tells_its_level(line: str, level: str) -> None:
    assert short(level_of(line)) == level


def test_every_line_of_a_traceback_is_an_error() -> None:
    lines = [
        "step 1",
        "[rank0]: Traceback (most recent call last):",
        '[rank0]:   File "loop.py", line 3, in train',
        "[rank0]:     step()",
        "[rank0]: ValueError: no",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "Traceback (most recent call last):",
        "  here",
        "RuntimeWarn: odd name",
        "step 2",
    ]
    reader = LevelReader()
    levels = [short(reader.read(line)) for line in lines]
    assert levels == ["UNSPECIFIED", *["ERROR"] * 10, "UNSPECIFIED"]


def test_lines_have_levels_and_the_step_they_were_written_after(tmp_path: Path) -> None:
    path, step = tmp_path / "log", 3
    log = tail(path, step=lambda: step)
    path.write_text("INFO one\nTraceback (most recent call last):\n  x\n")
    first = log.read(ended=False)
    step = 7
    with path.open("a") as file:
        file.write("KeyError: 1\nhalf a line")
    second = log.read(ended=False)
    assert first is not None
    assert second is not None
    assert [short(level) for level in (*first.levels, *second.levels)] == ["INFO", *["ERROR"] * 3]
    assert (list(first.steps), list(second.steps)) == ([3, 3, 3], [7])
    assert log.read(ended=False) is None
    assert texts(chunks(log)) == ["half a line"]


def test_a_line_without_end_shows_its_beginning_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    size = 1024 * MIB
    with path.open("wb") as file:
        file.write(b"before\n" + b"y" * 20_000)
        file.truncate(size)  # a hole of zeros: 1 GB, and no block of the disk
        file.seek(size)
        file.write(b"rest of it\nafter\n")
    memory = psutil.Process().memory_info().rss
    log = tail(path)
    lines: list[str] = []
    num_bytes = 0
    while (chunk := log.read(ended=True)) is not None:
        lines += chunk.lines
        num_bytes += chunk.num_bytes
    assert lines[0] == "before"
    assert lines[1].startswith("yyyy")
    assert lines[1].endswith("…[cut]")
    assert lines[2:] == ["after"]
    assert num_bytes == path.stat().st_size
    assert psutil.Process().memory_info().rss - memory < 50 * MIB


def test_binary_colours_and_progress_bars_become_text(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\x1b[31mred\x1b[0m\x00\xff\n10%\r50%\r100%\n" + bytes(range(256)) * 2000 + b"\nend\n")
    lines = texts(chunks(tail(path)))
    assert lines[:2] == ["red�", "100%"]
    assert lines[-1] == "end"
    assert all("\x00" not in line and "\x1b" not in line for line in lines)


def test_a_progress_bar_that_never_ends_its_line_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"%6d/100000 it/s\r" % i for i in range(50_000)))
    shown = texts(chunks(tail(path), ended=False))
    assert len(shown) >= 2
    assert all(line.endswith("/100000 it/s") and len(line) == 18 for line in shown)


def test_many_empty_lines_fit_messages(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\n" * 300_000)
    assert len(texts(chunks(tail(path)))) == 300_000


def test_secrets_are_gone_and_offsets_stay(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = ["start", "login with s3cr3t-value!", "hub hf_" + "a" * 34, "end"]
    path.write_text("\n".join(lines) + "\n")
    found = chunks(tail(path, Redactor(["s3cr3t-value!"])))
    assert texts(found) == ["start", "login with [redacted]", "hub [redacted]", "end"]
    assert list(found[0].line_offsets) == [0, 6, 31, 73]
    assert found[0].num_bytes == path.stat().st_size


@pytest.mark.parametrize("before", [0, 10, 16_370, 16_384, 24_570, 262_130, 262_144, 262_150])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_no_part_of_a_secret_leaves_a_long_line(tmp_path: Path, before: int, end: bytes) -> None:
    path, secret = tmp_path / "log", "correct-horse-battery-staple"
    path.write_bytes(b"." * before + secret.encode() + b"." * 300_000 + end)
    log = tail(path, Redactor([secret]))
    shown = "".join(texts(chunks(log, ended=False)) + texts(chunks(log)))
    parts = [secret[i : i + 6] for i in range(len(secret) - 5)]
    assert not any(part in shown for part in parts)


def test_a_log_read_again_from_the_middle_of_a_long_line_does_not_show_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 300_000 + b"tail-of-a-secret\nnext\n")
    log = tail(path)
    log.offset = 300_003
    assert texts(chunks(log)) == ["next"]


def test_a_secret_that_is_only_half_written_waits(tmp_path: Path) -> None:
    path, secret = tmp_path / "log", "correct-horse-battery-staple"
    log = tail(path, Redactor([secret]))
    path.write_text("." * 16_370 + secret[:14])
    assert log.read(ended=False) is None
    with path.open("a") as file:
        file.write(secret[14:] + "." * 40_000)
    shown = "".join(texts(chunks(log, ended=False)))
    assert shown
    assert "horse" not in shown
