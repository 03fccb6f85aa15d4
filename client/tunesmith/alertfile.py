"""Files of alert rules: YAML with `channels:` and `rules:`, checked against the contract line by line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import jobfile, names, validation
from tunesmith.api.metrics.v1 import rules_pb2
from tunesmith.errors import InvalidArgument, Violation
from tunesmith.jobfields import Reading

_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SET_BY_SERVER = ("name", "etag", "create_time", "update_time", "problem")


class _Lined(dict[str, Any]):
    """A mapping whose keys stand on lines of the file."""

    lines: Mapping[str, int]


@dataclass(frozen=True)
class AlertFile:
    """What a file says: channels and rules by id, in its order."""

    channels: dict[str, rules_pb2.AlertChannel]
    rules: dict[str, rules_pb2.AlertRule]


def read(path: Path, project: str) -> AlertFile:
    """Returns what a file says of a project. Raises InvalidArgument with every mistake and its line."""
    try:
        content = jobfile.read(path)
    except InvalidArgument as error:
        raise InvalidArgument(
            "FILE_UNREADABLE" if error.reason == "FILE_UNREADABLE" else "RULE_FILE_INVALID",
            error.message,
            field=error.field,
            value=error.value,
            remedy="give the path of a YAML file" if error.reason == "FILE_UNREADABLE" else error.remedy,
        ) from None
    return parse(content, str(path), project)


def parse(content: Any, source: str, project: str) -> AlertFile:
    """As `read`, for plain content; `source` names it in errors."""
    reading = Reading(rules_pb2.AlertRule.DESCRIPTOR)
    found = AlertFile({}, {})
    if not isinstance(content, Mapping):
        reading.wrong("", content, "has neither channels nor rules", "begin with `rules:`")
        content = {}
    for key in content:
        if key not in ("channels", "rules"):
            reading.lines[str(key)] = getattr(content, "lines", {}).get(key, 0)
            reading.wrong(str(key), "", "is not a key here", "the keys are channels and rules")
    for ident, said in _entries(reading, content, "channels"):
        found.channels[ident] = _channel(reading, ident, said, project)
    for ident, said in _entries(reading, content, "rules"):
        found.rules[ident] = _rule(reading, ident, said, project)
    _raise(reading, source)
    return found


def _entries(reading: Reading, content: Mapping[str, Any], group: str) -> list[tuple[str, Any]]:
    entries = content.get(group) or {}
    if not isinstance(entries, Mapping):
        reading.wrong(
            group, entries, "is not a mapping of ids to what they stand for", f"write `{group}: {{}}`"
        )
        return []
    found = []
    for ident, said in entries.items():
        path = f"{group}.{ident}"
        reading.lines[path] = getattr(entries, "lines", {}).get(ident, 0)
        if not isinstance(ident, str) or not _ID.fullmatch(ident):
            reading.wrong(path, ident, "is no id", "use 1 to 63 lower-case letters, digits and dashes")
        else:
            found.append((ident, said))
    return found


def _rule(reading: Reading, ident: str, said: Any, project: str) -> rules_pb2.AlertRule:
    path, rule = f"rules.{ident}.", rules_pb2.AlertRule()
    for name in _SET_BY_SERVER:
        if isinstance(said, Mapping) and name in said:
            reading.wrong(f"{path}{name}", said[name], "is set by the server", "delete the line")
    reading.fill(rule, said, path)
    rule.name = names.resource(project, "alertRules", ident)
    rule.channels[:] = [names.resource(project, "alertChannels", each) for each in rule.channels]
    rule.selector.jobs[:] = [names.resource(project, "jobs", each) for each in rule.selector.jobs]
    rule.selector.nodes[:] = [each if "/" in each else f"nodes/{each}" for each in rule.selector.nodes]
    if not rule.selector.ByteSize():
        rule.ClearField("selector")
    _limits(reading, rule, path)
    if rule.HasField("condition") and rule.condition.WhichOneof("condition") is None:
        kinds = ", ".join(field.name for field in rule.condition.DESCRIPTOR.fields)
        reading.wrong(f"{path}condition", "", "is empty", f"give one of {kinds}")
    return rule


def _channel(reading: Reading, ident: str, said: Any, project: str) -> rules_pb2.AlertChannel:
    path, channel = f"channels.{ident}.", rules_pb2.AlertChannel()
    reading.fill(channel, _filled(reading, said, path.rstrip(".")), path)
    channel.name = names.resource(project, "alertChannels", ident)
    if channel.WhichOneof("target") is None:
        reading.wrong(path.rstrip("."), "", "leads nowhere", "give webhook or apprise")
    return channel


def _filled(reading: Reading, said: Any, path: str) -> Any:
    """The same content with `${NAME}` replaced by the environment's variables: secrets stand in no file."""
    if isinstance(said, str):
        for name in _VARIABLE.findall(said):
            if name not in os.environ:
                reading.wrong(path, said, f"names the variable {name}, which is not set", f"export {name}=…")
        return _VARIABLE.sub(lambda match: os.environ.get(match[1], ""), said)
    if isinstance(said, list):
        return [_filled(reading, item, f"{path}[{index}]") for index, item in enumerate(said)]
    if isinstance(said, Mapping):
        copy: Any = _Lined({key: _filled(reading, value, f"{path}.{key}") for key, value in said.items()})
        copy.lines = getattr(said, "lines", {})
        return copy
    return said


def _limits(reading: Reading, rule: rules_pb2.AlertRule, path: str) -> None:
    noted = {mistake.path for mistake in reading.mistakes}
    for wrong in validation.violations(rule, path):
        if not any(known == wrong.path or known.startswith(f"{wrong.path}.") for known in noted):
            reading.mistakes.append(wrong)


def _raise(reading: Reading, source: str) -> None:
    found = sorted(reading.mistakes, key=lambda wrong: reading.lines.get(wrong.path) or 10**9)
    found = [_with_line(wrong, reading.lines.get(wrong.path, 0)) for wrong in found]
    if not found:
        return
    only = found[0] if len(found) == 1 else Violation("", "", f"has {len(found)} errors")
    raise InvalidArgument(
        "RULE_FILE_INVALID",
        f"{source}: {only.path} {only.problem}".replace(":  ", " "),
        field=only.path,
        value=only.value,
        remedy=only.remedy,
        violations=found,
    )


def _with_line(wrong: Violation, line: int) -> Violation:
    problem = f"{wrong.problem} (line {line})" if line else wrong.problem
    return Violation(wrong.path, wrong.value, problem, wrong.remedy)
