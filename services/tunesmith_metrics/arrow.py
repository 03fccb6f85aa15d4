"""Arrow IPC streams and Parquet files with curves, piece by piece."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tunesmith.api.metrics.v1 import events_pb2
from tunesmith_metrics.series import Curve

_ROWS = 32_768  # in a piece, which is below a megabyte
_TIME = pa.timestamp("us", tz="UTC")


class _Sink(io.RawIOBase):
    """Takes what a writer of Arrow writes, to be taken away."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        found = b"".join(self._parts)
        self._parts.clear()
        return found


class _Columns:
    """Arrow's four columns of a curve. The keys are known before the first one is written, so each key is one
    number in the rows."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = {key: index for index, key in enumerate(keys)}
        self.dictionary = pa.array(list(keys), pa.string())
        self.schema = pa.schema(
            {
                "key": pa.dictionary(pa.int32(), pa.string()),
                "step": pa.int64(),
                "time": _TIME,
                "value": pa.float64(),
            }
        )

    def batches(self, key: str, curve: Curve) -> Iterator[pa.RecordBatch]:
        """Yields the points of a curve."""
        for start in range(0, len(curve.steps), _ROWS):
            part = slice(start, start + _ROWS)
            steps = pa.array(curve.steps[part])
            index = np.full(len(steps), self.keys[key], dtype=np.int32)
            yield pa.record_batch(
                [
                    pa.DictionaryArray.from_arrays(pa.array(index), self.dictionary),
                    steps,
                    pa.array(curve.times_us[part]).cast(_TIME),
                    pa.array(curve.values[part], from_pandas=False),
                ],
                schema=self.schema,
            )


class ArrowFile:
    """An Arrow IPC stream, or a Parquet file with the same columns."""

    def __init__(self, keys: Sequence[str], parquet: bool) -> None:
        self._sink, self._columns = _Sink(), _Columns(keys)
        self._writer = (
            pa.parquet.ParquetWriter(self._sink, self._columns.schema, compression="zstd")
            if parquet
            else pa.ipc.new_stream(self._sink, self._columns.schema)
        )

    def begin(self) -> bytes:
        """What the file begins with."""
        return self._sink.taken()

    def curve(self, key: str, curve: Curve) -> Iterator[bytes]:
        """The points of a curve."""
        for batch in self._columns.batches(key, curve):
            self._writer.write_batch(batch)
            yield self._sink.taken()

    def rich(self, key: str, value: events_pb2.RichValue) -> bytes:
        """Nothing: the columns are those of numbers."""
        return b""

    def end(self) -> bytes:
        """What the file ends with."""
        self._writer.close()
        return self._sink.taken()
