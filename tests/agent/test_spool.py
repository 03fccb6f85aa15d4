"""The spool as the agent reads it: every record once, in order, whatever is torn."""

import struct
import zlib
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_agent.logs import LogTail
from tunesmith_agent.spool import MAGIC, Block, Item, Record, SpoolReader, pack


def key(number: int, name: str) -> bytes:
    return _framed(struct.pack("<BH", 1, number) + name.encode())


def step(seq: int, step_number: int, values: dict[int, float]) -> bytes:
    head = struct.pack("<BQqqH", 2, seq, step_number, 1_000_000 * seq, len(values))
    ids = struct.pack(f"<{len(values)}H", *values)
    return _framed(head + ids + struct.pack(f"<{len(values)}d", *values.values()))


def _framed(body: bytes) -> bytes:
    return struct.pack("<II", len(body) + 4, zlib.crc32(body)) + body


def segment(folder: Path, number: int, *records: bytes) -> Path:
    path = folder / f"metrics-{number:08d}.bin"
    path.write_bytes(MAGIC + b"".join(records))
    return path


def seqs(items: list[Item]) -> list[int]:
    return [seq for item in items if isinstance(item, Block) for seq in item.seqs.tolist()]


def unpack(batch: events_pb2.MetricBatch) -> list[tuple[int, dict[str, float]]]:
    found = []
    for matrix in batch.matrices:
        steps = np.cumsum(list(matrix.step_deltas))
        columns = [batch.keys[i] for i in matrix.key_indices]
        rows = np.array(matrix.values).reshape(len(steps), len(columns))
        found += [
            (int(s), dict(zip(columns, row, strict=True)))
            for s, row in zip(steps, rows.tolist(), strict=True)
        ]
    return found


def test_records_come_in_order_over_segments_and_as_they_are_appended(tmp_path: Path) -> None:
    first = segment(tmp_path, 1, key(0, "train/loss"), step(1, 1, {0: 3.0}))
    reader = SpoolReader(tmp_path)
    assert seqs(reader.read(0)) == [1]
    with first.open("ab") as file:
        file.write(step(2, 2, {0: 2.0}))
    segment(tmp_path, 2, key(0, "eval/loss"), step(3, 3, {0: 1.0}))
    blocks = [item for item in reader.read(0) if isinstance(item, Block)]
    assert [(b.seqs.tolist(), b.keys, b.values.tolist()) for b in blocks] == [
        ([2], ("train/loss",), [[2.0]]),
        ([3], ("eval/loss",), [[1.0]]),
    ]


def test_a_torn_record_waits_until_it_is_whole(tmp_path: Path) -> None:
    whole = step(2, 2, {0: 2.0})
    path = segment(tmp_path, 1, key(0, "a"), step(1, 1, {0: 1.0}), whole[:-3])
    reader = SpoolReader(tmp_path)
    assert seqs(reader.read(0)) == [1]
    with path.open("ab") as file:
        file.write(whole[-3:])
    assert seqs(reader.read(0)) == [2]


def test_a_segment_torn_for_ever_is_followed_by_the_next(tmp_path: Path) -> None:
    segment(tmp_path, 1, key(0, "a"), step(1, 1, {0: 1.0}), step(2, 2, {0: 2.0})[:-1])
    segment(tmp_path, 2, key(0, "a"), step(2, 2, {0: 2.5}))
    blocks = [item for item in SpoolReader(tmp_path).read(0) if isinstance(item, Block)]
    assert [value for item in blocks for value in item.values.ravel().tolist()] == [1.0, 2.5]


def test_a_segment_that_was_just_created_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "metrics-00000001.bin").write_bytes(MAGIC[:3])
    assert SpoolReader(tmp_path).read(0) == []


def test_only_stored_segments_that_are_not_written_any_more_are_trimmed(tmp_path: Path) -> None:
    old = segment(tmp_path, 1, key(0, "a"), step(1, 1, {0: 1.0}), step(2, 2, {0: 1.0}))
    new = segment(tmp_path, 2, key(0, "a"), step(3, 3, {0: 1.0}))
    reader = SpoolReader(tmp_path)
    reader.read(0)
    reader.trim(1)
    assert old.exists()
    reader.trim(3)
    assert not old.exists()
    assert new.exists()


def test_after_a_rewind_the_rest_comes_again(tmp_path: Path) -> None:
    segment(tmp_path, 1, key(0, "a"), *(step(i, i, {0: float(i)}) for i in range(1, 6)))
    reader = SpoolReader(tmp_path)
    reader.read(0)
    reader.rewind()
    assert seqs(reader.read(3)) == [4, 5]


records = st.lists(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.floats(allow_nan=False), min_size=1, max_size=3),
    max_size=40,
)


@given(records)
@settings(deadline=None)
def test_packing_keeps_every_value(rows: list[dict[str, float]]) -> None:
    made = [Record(i + 1, 10 * i, 5 * i, tuple(row), tuple(row.values())) for i, row in enumerate(rows)]
    batches = list(pack("job", 1, 0, made))
    assert [pair for batch in batches for pair in unpack(batch)] == [
        (10 * i, row) for i, row in enumerate(rows)
    ]
    assert sum(batch.num_records for batch in batches) == len(rows)


def test_a_gap_in_the_sequence_starts_a_new_message() -> None:
    made = [Record(seq, seq, seq, ("a",), (1.0,)) for seq in (1, 2, 5, 6)]
    assert [(b.first_seq, b.num_records) for b in pack("job", 1, 0, made)] == [(1, 2), (5, 2)]


def test_logs_come_in_whole_lines_with_their_offsets(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.log"
    path.write_bytes("one\ntwö\nthr".encode())
    tail = LogTail(path, "job", 1, 0)
    chunk = tail.read(ended=False)
    assert chunk is not None
    assert (list(chunk.lines), list(chunk.line_offsets), chunk.num_bytes) == (["one", "twö"], [0, 4], 9)
    assert tail.read(ended=False) is None
    last = tail.read(ended=True)
    assert last is not None
    assert (list(last.lines), last.offset) == (["thr"], 9)


def test_binary_long_and_coloured_lines_are_made_harmless(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.log"
    path.write_bytes(b"\x1b[31mred\x1b[0m\x00\n" + b"x" * 100_000 + b"\n" + b"10%\r50%\r100%\n\xff\xfe\n")
    chunk = LogTail(path, "job", 1, 0).read(ended=True)
    assert chunk is not None
    red, long, bar, binary = chunk.lines
    assert red == "red"
    assert long.startswith("xxx")
    assert long.endswith("[cut]")
    assert len(long) < 20_000
    assert bar == "100%"
    assert binary == "��"
