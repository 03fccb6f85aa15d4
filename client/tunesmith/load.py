"""What one call sends of a run's records, as the contract has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunesmith.api.metrics.v1 import events_pb2, records_pb2
from tunesmith.pace import stamp

_MOST_VALUES = 50_000
_RICH = ("histogram", "text", "picture")


@dataclass
class Load:
    """What one call sends."""

    records: list[records_pb2.LoggedRecord] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)  # their digests
    first_seq: int = 0
    lines: list[records_pb2.LoggedLine] = field(default_factory=list)
    log_offset: int = 0
    num_values: int = 0
    next_offset: int = 0

    def fits(self, record: dict[str, Any]) -> bool:
        """Whether a record follows those at hand without a gap, and there is room for it."""
        if "seq" in record:
            follows = not self.records or record["seq"] == self.first_seq + len(self.records)
            return follows and self.num_values + len(record.get("values", ())) <= _MOST_VALUES
        return not self.lines or record["offset"] == self.next_offset

    def add(self, record: dict[str, Any]) -> None:
        """Takes a record in."""
        if "seq" in record:
            self.first_seq = self.first_seq or record["seq"]
            if "key" in record:
                self._add_rich(record)
                return
            values = {key: float(value) for key, value in record["values"].items()}
            self.records.append(
                records_pb2.LoggedRecord(step=record["step"], time=stamp(record["time"]), values=values)
            )
            self.num_values += len(values)
            return
        if not self.lines:
            self.log_offset = record["offset"]
        level = events_pb2.LogLevel.Value(f"LOG_LEVEL_{record['level']}")
        self.lines.append(
            records_pb2.LoggedLine(text=record["text"], level=level, step=max(record["step"], 0))
        )
        self.next_offset = record["offset"] + len(record["text"].encode()) + 1

    def _add_rich(self, record: dict[str, Any]) -> None:
        rich = records_pb2.LoggedRich(key=record["key"])
        if "text" in record:
            rich.text = record["text"]
        elif "histogram" in record:
            rich.histogram.CopyFrom(events_pb2.Histogram(**record["histogram"]))
        else:
            rich.picture.CopyFrom(events_pb2.Picture(**record["picture"]))
            self.pictures.append(rich.picture.digest)
        self.records.append(
            records_pb2.LoggedRecord(step=record["step"], time=stamp(record["time"]), rich=rich)
        )


def is_sound(record: dict[str, Any]) -> bool:
    """Whether a record is one that a program of ours wrote."""
    whole = type(record.get("step")) is int
    if "seq" in record:
        whole = whole and all(type(record.get(name)) is int for name in ("seq", "time"))
        if "key" in record:
            return whole and isinstance(record["key"], str) and _is_rich(record)
        values = record.get("values")
        return (
            whole
            and isinstance(values, dict)
            and all(isinstance(value, int | float) for value in values.values())
        )
    return (
        whole
        and type(record.get("offset")) is int
        and isinstance(record.get("text"), str)
        and events_pb2.LogLevel.DESCRIPTOR.values_by_name.get(f"LOG_LEVEL_{record.get('level')}") is not None
    )


def _is_rich(record: dict[str, Any]) -> bool:
    kinds = [name for name in _RICH if name in record]
    if kinds == ["text"]:
        return isinstance(record["text"], str)
    try:
        form = {"histogram": events_pb2.Histogram, "picture": events_pb2.Picture}[kinds[0]]
        form(**record[kinds[0]])
    except (IndexError, KeyError, TypeError, ValueError, AttributeError):
        return False
    return len(kinds) == 1
