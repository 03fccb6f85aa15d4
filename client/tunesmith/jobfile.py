"""The YAML job file: what a user writes, with every mistake in it named at once.

The file has the form of the message JobSpec, with the same names. Enums are written short (`cosine`), times
as `10s`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tunesmith import validation
from tunesmith.api.jobs.v1.spec_pb2 import JobSpec
from tunesmith.errors import InvalidArgument, Violation
from tunesmith.jobfields import Reading, plain

# Of a file that somebody else parses for us.
_MOST_ALIASES, _MOST_VALUES, _DEEPEST = 16, 20_000, 32
_MOST_DIGITS = 100  # Python refuses to say integers of more than 4,300, and reads some in quadratic time


class _Map(dict[Hashable, Any]):
    """A mapping of the file that knows on which line each of its keys stands."""

    lines: dict[Hashable, int]


class _Loader(yaml.SafeLoader):
    """YAML without its traps: `1e-4` is a number, `no` and `2024-01-01` are texts, no key comes twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Returns the value of a node. Raises YAMLError for every value that is none of its tag."""
        kind = node.tag.rpartition(":")[2]
        digits = isinstance(node, yaml.ScalarNode) and kind in ("int", "float")
        if digits and len(node.value) > _MOST_DIGITS:
            raise yaml.MarkedYAMLError(problem="a number has too many digits", problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError):  # of `!!int abc` and the like
            raise yaml.MarkedYAMLError(
                problem=f"what stands here is no {kind}", problem_mark=node.start_mark
            ) from None


class _Dumper(yaml.SafeDumper):
    """Quotes what this module's reader, or another YAML reader, would take for something else."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # Unicode's rarer line breaks are folded away by PyYAML unless they are escaped.
    style = '"' if any(char in value for char in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


_PLAIN = (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", [*"-+0123456789"]),
    ("float", r"[-+]?(?:[0-9]+(?=[eE])|[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"[-+]?\.inf|\.nan", [*"-+."]),
    ("merge", r"<<", ["<"]),
)
for _tag, _pattern, _first in _PLAIN:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> _Map:
    lines: dict[Hashable, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.MarkedYAMLError(
                problem="a key is a list or a mapping", problem_mark=key_node.start_mark
            )
        if key in lines:
            raise yaml.MarkedYAMLError(
                problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
            )
        lines[key] = key_node.start_mark.line + 1
    loader.flatten_mapping(node)
    result = _Map(loader.construct_mapping(node, deep=True))
    result.lines = lines
    return result


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def job_spec(spec: JobSpec | Mapping[str, Any] | str | Path, overrides: Iterable[str] = ()) -> JobSpec:
    """Returns the checked JobSpec of a job file's path, of a mapping of the same form, or of a JobSpec.

    `overrides` are like `training.learning_rate=1e-4`; they win over the file. Raises InvalidArgument with
    every mistake in `violations`.
    """
    overrides = list(overrides)
    if isinstance(spec, JobSpec):
        if overrides:
            raise TypeError("overrides go with a job file or a mapping, not with a JobSpec")
        return _checked(spec, Reading(JobSpec.DESCRIPTOR), "the job spec")
    if isinstance(spec, Mapping):
        return parse(spec, "the job spec", overrides)
    return parse(read(Path(spec)), str(spec), overrides)


def read(path: Path) -> Any:
    """Returns the plain content of a YAML file. Raises InvalidArgument when it cannot be read."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidArgument(
            "FILE_UNREADABLE",
            f"cannot read {path}: {reason}",
            field="file",
            value=path,
            remedy="give the path of a YAML job file",
        ) from None
    return loads(text, str(path))


def dumps(spec: JobSpec) -> str:
    """Returns a job file for `spec`, which reads back as the same spec."""
    return yaml.dump(plain(spec), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse(content: Any, source: str, overrides: Iterable[str] = ()) -> JobSpec:
    """Returns the checked JobSpec of plain content; `source` names it in errors."""
    content = _overridden(content, overrides)
    reading, spec = Reading(JobSpec.DESCRIPTOR), JobSpec()
    if content is not None and not isinstance(content, Mapping):
        reading.wrong("", content, "is not a mapping of keys to values", "begin with `base_model: ...`")
    else:
        reading.fill(spec, content)
    return _checked(spec, reading, source)


@dataclass
class Examined:
    """A job file as far as it can be read: what is wrong is told beside what is right."""

    content: Any = None
    """What it says, plain; None when it is no YAML mapping."""
    spec: JobSpec = field(default_factory=JobSpec)
    """What of it fits."""
    mistakes: list[Violation] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    """Line of each path, from 1."""


def examine(text: str) -> Examined:
    """Reads a job file for one who is still writing it; never raises for what stands in it."""
    try:
        content = _bounded(text)
    except RecursionError:
        return Examined(mistakes=[Violation("", "", "is nested too deep", "a job file has four levels")])
    except InvalidArgument as error:
        line = error.field.removeprefix("line ")
        wrong = Violation("", error.value, error.message, error.remedy)
        return Examined(mistakes=[wrong], lines={"": int(line)} if line.isdigit() else {})
    found, reading = Examined(), Reading(JobSpec.DESCRIPTOR)
    if content is not None and not isinstance(content, Mapping):
        reading.wrong("", content, "is not a mapping of keys to values", "begin with `base_model: ...`")
    else:
        reading.fill(found.spec, content)
        found.content = content or {}
    found.mistakes, found.lines = _mistakes(found.spec, reading), reading.lines
    return found


def _bounded(text: str) -> Any:
    """Returns the content of a text that may mean harm: a few aliases may stand for millions of values."""
    if "*" in text and "&" in text:
        aliases = 0
        with contextlib.suppress(yaml.YAMLError):  # told below, with its line
            aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader))
        if aliases > _MOST_ALIASES:
            raise InvalidArgument(
                "JOB_FILE_INVALID",
                f"has more than {_MOST_ALIASES} aliases",
                remedy="write the values out",
            )
    content = loads(text, "the file")
    left, waiting = _MOST_VALUES, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        items = value.values() if isinstance(value, Mapping) else value
        inner = list(items) if isinstance(value, Mapping | list) else []
        left -= 1 + len(inner)
        if left < 0 or depth > _DEEPEST:
            raise InvalidArgument(
                "JOB_FILE_INVALID", "holds too many values", remedy="give a job file: a few dozen keys"
            )
        waiting += [(item, depth + 1) for item in inner]
    return content


def edits(overrides: Iterable[str], parent: JobSpec) -> tuple[JobSpec, list[str]]:
    """Returns the edits of a fork of `parent`: a spec with the new values, and the paths of its fields.

    `overrides` are like `training.learning_rate=1e-4`. A map such as `labels` is edited key by key.
    """
    overrides = list(overrides)
    content = _overridden({}, overrides)
    reading, spec = Reading(JobSpec.DESCRIPTOR), JobSpec()
    paths = []
    for override in overrides:
        path = override.partition("=")[0].strip()
        kept = _up_to_map(path)
        if kept != path:
            _copy_map(parent, spec, kept)
        paths.append(kept)
    reading.fill(spec, content)
    if reading.mistakes:
        only = reading.mistakes[0]
        raise InvalidArgument(
            "JOB_FILE_INVALID",
            f"the edits: {only.path} {only.problem}",
            field=only.path,
            value=only.value,
            remedy=only.remedy,
            violations=reading.mistakes,
        )
    return spec, list(dict.fromkeys(paths))


def _up_to_map(path: str) -> str:
    """Returns a path without what stands behind a map: `labels.team` is edited as `labels`."""
    descriptor, kept = JobSpec.DESCRIPTOR, []
    for part in path.split("."):
        kept.append(part)
        field = descriptor.fields_by_name.get(part)
        if field is None or field.message_type is None:
            return path
        if field.message_type.GetOptions().map_entry:
            break
        descriptor = field.message_type
    return ".".join(kept)


def _copy_map(source: Any, target: Any, path: str) -> None:
    *parents, name = path.split(".")
    for part in parents:
        source, target = getattr(source, part), getattr(target, part)
    getattr(target, name).update(getattr(source, name))


def loads(text: str, source: str) -> Any:
    """Returns the plain content of YAML text; `source` names it in errors."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InvalidArgument(
            "JOB_FILE_INVALID",
            f"{source} is not valid YAML{where}: {problem}",
            field=f"line {mark.line + 1}" if mark is not None else "",
            value=_line(text, mark.line) if mark is not None else "",
            remedy="mend the line; keys and values are written `key: value`, nested keys are indented",
        ) from None


def _line(text: str, index: int) -> str:
    lines = text.splitlines()
    return lines[index].strip() if index < len(lines) else ""


def _overridden(content: Any, overrides: Iterable[str]) -> Any:
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise InvalidArgument(
                "JOB_FILE_INVALID",
                "an override is not of the form key=value",
                field="--set",
                value=override,
                remedy="write it like training.learning_rate=1e-4",
            )
        content = _replaced(content, keys, loads(text, f"the value of {path}"))
    return content


def _replaced(content: Any, keys: list[str], value: Any) -> Any:
    """Returns a copy of nested mappings with the value at the path `keys` replaced."""
    if not keys:
        return value
    copy = _Map(content) if isinstance(content, Mapping) else _Map()
    copy.lines = dict(getattr(content, "lines", {}))
    copy.lines.pop(keys[0], None)
    copy[keys[0]] = _replaced(copy.get(keys[0]), keys[1:], value)
    return copy


def _checked(spec: JobSpec, reading: Reading, source: str) -> JobSpec:
    found = _mistakes(spec, reading)
    if not found:
        return spec
    found = [_with_line(wrong, reading.lines.get(wrong.path, 0)) for wrong in found]
    if len(found) > 1:
        raise InvalidArgument("JOB_FILE_INVALID", f"{source} has {len(found)} errors", violations=found)
    only = found[0]
    raise InvalidArgument(
        "JOB_FILE_INVALID",
        f"{source}: {only.path} {only.problem}",
        field=only.path,
        value=only.value,
        remedy=only.remedy,
        violations=found,
    )


def _mistakes(spec: JobSpec, reading: Reading) -> list[Violation]:
    """Returns all that is wrong, in the order of the file; what is missing stands on no line: last."""
    # A field already noted as wrong was left out, so that it would be noted again as missing.
    noted = {mistake.path for mistake in reading.mistakes}
    found = reading.mistakes + [wrong for wrong in validation.violations(spec) if wrong.path not in noted]
    return sorted(found, key=lambda wrong: reading.lines.get(wrong.path) or 10**9)


def _with_line(wrong: Violation, line: int) -> Violation:
    problem = f"{wrong.problem} (line {line})" if line else wrong.problem
    return Violation(wrong.path, wrong.value, problem, wrong.remedy)
