"""Moments on the command line: so long ago, or a date and time."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import click

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 for checkers only
    """`90s`, `15m`, `2h`, `3d` ago, or a date and time such as `2026-11-22T07:00`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, (datetime, timedelta)):
            return value
        if ago := _AGO.fullmatch(value):
            return timedelta(seconds=float(ago[1]) * _SECONDS[ago[2]])
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither a span such as 15m, 2h or 3d nor a date and time", param, ctx)
