"""The tables of the documentation, made from the code they describe.

`python -m tests.house.tables` writes them between their marks; `test_docs.py` says when they are out of date.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc import StatusCode
from prometheus_client import Counter, Gauge, Histogram

from tests.house import contract
from tunesmith.api.common.v1 import options_pb2
from tunesmith.api.jobs.v1 import events_pb2 as job_events
from tunesmith.api.jobs.v1 import spec_pb2, state_pb2
from tunesmith.api.nodes.v1 import events_pb2 as node_events
from tunesmith.api.registry.v1 import events_pb2 as registry_events
from tunesmith.cli import COMMANDS
from tunesmith.errors import REASONS, TunesmithError
from tunesmith_gateway.auth import ROLES
from tunesmith_jobs import machine
from tunesmith_kit import access, streams, subjects
from tunesmith_kit.host import find_service
from tunesmith_kit.meters import METRICS
from tunesmith_kit.settings import PREFIX, ServiceSettings

ROOT = Path(__file__).parents[2]
_MARKED = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_MIB, _GIB, _DAY = 1024**2, 1024**3, 24 * 3600 * 10**9


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [" | ".join(head), "|".join("---" for _ in head)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "".join(f"| {line} |\n" if not line.startswith("---") else f"|{line}|\n" for line in lines)


def code(text: object) -> str:
    """Returns a text as code; nothing for nothing."""
    return f"`{text}`" if text != "" else ""


def settings() -> str:
    """Settings that every process has."""
    return _settings(PREFIX, fields(ServiceSettings))


def own_settings(service: str) -> str:
    """Settings that only one process has."""
    shared = {item.name for item in fields(ServiceSettings)}
    own = [item for item in fields(find_service(service).settings) if item.name not in shared]
    return _settings(f"{PREFIX}{service.upper()}_", own)


def _settings(prefix: str, items: Iterable[Field[object]]) -> str:
    rows = (
        (
            code(prefix + item.name.upper()),
            code(item.default),
            item.metadata["help"] + ("; secret" if item.metadata["secret"] else ""),
        )
        for item in items
    )
    return table(("setting", "default", "meaning"), rows)


def metrics() -> str:
    """Metrics of Prometheus."""
    rows = []
    for meter in vars(type(METRICS)).values():
        if isinstance(meter, Counter | Gauge | Histogram):
            (family,) = meter.describe()
            suffix = "_total" if family.type == "counter" else ""
            labels = ", ".join(code(label) for label in meter._labelnames)
            rows.append((code(family.name + suffix), family.type, labels, family.documentation))
    return table(("metric", "kind", "labels", "meaning"), rows)


def errors() -> str:
    """Classes of errors."""
    names = {status.value[0]: status.name for status in StatusCode}
    rows = (
        (code(cls.__name__), code(names[cls.code]), str(cls.http_status), (cls.__doc__ or "").strip())
        for cls in TunesmithError.__subclasses__()
    )
    return table(("class", "gRPC", "HTTP", "meaning"), rows)


def reasons() -> str:
    """Reasons of errors."""
    rows = ((code(reason), code(cls.__name__), text) for reason, (cls, text) in REASONS.items())
    return table(("reason", "class", "meaning"), rows)


def roles() -> str:
    """Permissions of roles."""
    rows = (
        (code(role), "everything" if "*" in held else ", ".join(code(name) for name in sorted(held)))
        for role, held in ROLES.items()
    )
    return table(("role", "permissions"), rows)


def rpcs() -> str:
    """Every rpc with its permission and its REST route."""
    rows = []
    for method in contract.rpcs():
        rpc = access.describe(method)
        route = f"{rpc.http_method} /api/v1/{rpc.http_path}" if rpc.http_method else ""
        streamed = " (stream)" if rpc.client_streaming or rpc.server_streaming else ""
        service = method.containing_service.name
        rows.append((code(f"{service}.{method.name}") + streamed, code(rpc.permission), code(route)))
    return table(("rpc", "permission", "REST"), rows)


def commands() -> str:
    """Commands of the command line."""
    return table(("command", "what it does"), ((code(f"tunesmith {n}"), e.help) for n, e in COMMANDS.items()))


def stream_table() -> str:
    """Streams of JetStream."""
    rows = []
    for item in streams.STREAMS:
        age = f"{item.max_age // _DAY} d" if item.max_age else "no limit"
        full = {"old": "the oldest go", "new": "the newest are refused"}[item.discard]
        readers = ", ".join(code(durable.name) for durable in item.durables)
        large = item.max_bytes >= _GIB
        size = f"{item.max_bytes // _GIB} GiB" if large else f"{item.max_bytes // _MIB} MiB"
        names = "<br>".join(code(subject) for subject in item.subjects)
        rows.append((code(item.name), names, item.retention, size, age, full, readers))
    head = ("stream", "subjects", "retention", "size", "age", "when full", "fixed consumers")
    return table(head, rows)


def subject_table() -> str:
    """Subjects, from the words of the module that builds them."""
    found = re.findall(r"^    (\S+) +(\S.*)$", subjects.__doc__ or "", re.MULTILINE)
    return table(("subject", "what it carries"), ((code(subject), text) for subject, text in found))


def events(envelope: Descriptor) -> str:
    """Kinds of an envelope with their comments."""
    kinds = envelope.oneofs[0].fields
    rows = ((code(kind.name), code(_message(kind)), _comment(kind)) for kind in kinds)
    return table(("kind", "message", "what happened"), rows)


def _message(field: FieldDescriptor) -> str:
    assert field.message_type is not None
    return field.message_type.name


def _comment(field: FieldDescriptor) -> str:
    return contract.comment(field.full_name)


def spec() -> str:
    """Every field of a job file."""
    return table(("field", "meaning", "limits"), _spec_rows(spec_pb2.JobSpec.DESCRIPTOR, ""))


def _spec_rows(message: Descriptor, prefix: str) -> Iterable[Sequence[str]]:
    for field in message.fields:
        name = prefix + field.name
        yield code(name), _comment(field), _limits(field)
        nested = field.message_type
        if nested is not None and nested.file.package == message.file.package and not _is_map(nested):
            yield from _spec_rows(nested, f"{name}.")


def _is_map(message: Descriptor) -> bool:
    return bool(message.GetOptions().map_entry)


def _limits(field: FieldDescriptor) -> str:
    given = field.GetOptions().Extensions[options_pb2.limits]
    words = {
        "required": "required",
        "unless": "unless there is {}",
        "min": "≥ {:,.10g}",
        "max": "≤ {:,.10g}",
        "above": "> {:,.10g}",
        "below": "< {:,.10g}",
        "pattern": "`{}`",
        "max_length": "≤ {} characters",
        "max_items": "≤ {} items",
    }
    said = ((limit.name, value) for limit, value in given.ListFields() if limit.name in words)
    parts = [words[name].format(" or ".join(map(code, v)) if name == "unless" else v) for name, v in said]
    if field.enum_type is not None:
        parts.append(", ".join(code(name) for name, _, _ in contract.values(field.enum_type)))
    return ", ".join(parts)


def states() -> str:
    """States of a job and what follows them."""

    def short(number: int) -> str:
        return state_pb2.JobState.Name(state_pb2.JobState.ValueType(number)).removeprefix("JOB_STATE_")

    enum = state_pb2.DESCRIPTOR.enum_types_by_name["JobState"]
    rows = []
    for _, number, text in contract.values(enum):
        after = machine.TRANSITIONS[state_pb2.JobState.ValueType(number)]
        rows.append((code(short(number)), text, ", ".join(code(short(each)) for each in sorted(after))))
    return table(("state", "meaning", "may be followed by"), rows)


def failures() -> str:
    """Classes of failures and the new attempts they allow."""
    budgets = {
        machine.Budget.UNLIMITED: "always",
        machine.Budget.INFRA: "up to `retry.max_infra_retries` times; a new checkpoint sets the count back",
        machine.Budget.PROGRESS: "once, if a checkpoint was committed since the attempt began",
        machine.Budget.HALVING: "no; with `retry.oom_policy: halve_micro_batch` as long as it can be halved",
        machine.Budget.NEVER: "no",
    }
    enum = state_pb2.DESCRIPTOR.enum_types_by_name["FailureClass"]
    rows = (
        (
            code(name.removeprefix("FAILURE_CLASS_")),
            text,
            budgets[machine.BUDGETS[state_pb2.FailureClass.ValueType(number)]],
        )
        for name, number, text in contract.values(enum)
    )
    return table(("class", "meaning", "tried again"), rows)


def subscriber() -> str:
    """The example program that listens."""
    return f"```python\n{(ROOT / 'examples' / 'subscriber.py').read_text('utf-8')}```\n"


TABLES: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "settings-gateway": lambda: own_settings("gateway"),
    "settings-agent": lambda: own_settings("agent"),
    "settings-registry": lambda: own_settings("registry"),
    "settings-metrics": lambda: own_settings("metrics"),
    "metrics": metrics,
    "errors": errors,
    "reasons": reasons,
    "roles": roles,
    "rpcs": rpcs,
    "commands": commands,
    "streams": stream_table,
    "subjects": subject_table,
    "events-job": lambda: events(job_events.JobEvent.DESCRIPTOR),
    "events-registry": lambda: events(registry_events.RegistryEvent.DESCRIPTOR),
    "events-node": lambda: events(node_events.NodeEvent.DESCRIPTOR),
    "node-commands": lambda: events(node_events.NodeCommand.DESCRIPTOR),
    "subscriber": subscriber,
    "spec": spec,
    "states": states,
    "failures": failures,
}


def filled(text: str) -> str:
    """Returns a document with its tables made anew."""
    return _MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


def names(text: str) -> list[str]:
    """Returns the names of the tables in a document."""
    return [found[2] for found in _MARKED.finditer(text)]


def main() -> None:
    """Writes the tables of all documents."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text("utf-8")
        if (new := filled(text)) != text:
            path.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
