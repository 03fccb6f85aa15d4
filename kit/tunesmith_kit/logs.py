"""Logs: JSON lines for programs, short lines for people; both with the trace they belong to.

Messages are constant phrases, what varies is in `extra`, so that lines can be counted by message.
"""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# They say at INFO what only their authors want to know.
_NOISY = ("alembic", "asyncio", "httpx", "opentelemetry", "sqlalchemy", "urllib3", "uvicorn")

TraceId = Callable[[], str]


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, trace_id, then the fields of `extra`."""

    def __init__(self, trace_id: TraceId) -> None:
        super().__init__()
        self._trace_id = trace_id

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        trace_id = self._trace_id()
        if trace_id:
            line["trace_id"] = trace_id
        line.update(_fields(record))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`12:03:44 warning  message  key=value …` for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        time = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        fields = "".join(f"  {key}={value}" for key, value in _fields(record).items())
        line = f"{time} {record.levelname.lower():<7} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


_handler = logging.StreamHandler(sys.stderr)


def install(log_format: str, log_level: str, trace_id: TraceId) -> None:
    """Sends all logs of this process to standard error. Later calls change format and level."""
    formatter = JsonFormatter(trace_id) if log_format == "json" else TextFormatter()
    _handler.setFormatter(formatter)
    root = logging.getLogger()
    if _handler not in root.handlers:
        root.addHandler(_handler)
    root.setLevel(log_level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
