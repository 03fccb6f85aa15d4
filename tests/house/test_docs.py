"""Documentation under test: what the code has is told, and what is told exists."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import click
import pytest

from tests.house import tables
from tests.house.tables import ROOT
from tunesmith.cli import COMMANDS, cli
from tunesmith_kit.host import EMBEDDED, find_service
from tunesmith_kit.meters import METRICS
from tunesmith_kit.settings import PREFIX, ServiceSettings

DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
IDS = [path.name for path in DOCS]
SERVERS = ("kit", "services", "gateway", "trainer")
# What the client, the tests and the page's development server read.
CLIENT_VARIABLES = {
    "ADDRESS", "TOKEN", "PROJECT", "PROFILE", "CONFIG_DIR", "DATA_DIR", "RUNS_DIR", "TEST_CACHE", "HTTP",
}  # fmt: skip


@cache
def read(path: Path) -> str:
    return path.read_text("utf-8")


def code_of(path: Path) -> str:
    """Code blocks and code spans of a document."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", read(path), re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", read(path), flags=re.DOTALL | re.MULTILINE))
    return "\n".join(blocks + spans)


@pytest.mark.parametrize("path", DOCS, ids=IDS)
def test_tables_are_those_of_the_code(path: Path) -> None:
    assert read(path) == tables.filled(read(path)), "run `python -m tests.house.tables`"


def test_every_table_stands_in_one_document() -> None:
    found = [name for path in DOCS for name in tables.names(read(path))]
    assert sorted(found) == sorted(tables.TABLES)


def settings() -> set[str]:
    shared = {item.name.upper() for item in fields(ServiceSettings)}
    names = {PREFIX + name for name in shared}
    for service in EMBEDDED:
        own = {item.name.upper() for item in fields(find_service(service).settings)}
        names |= {f"{PREFIX}{service.upper()}_{name}" for name in own}
    return names


@pytest.mark.parametrize("path", DOCS, ids=IDS)
def test_variables_named_in_documents_exist(path: Path) -> None:
    compose = set(re.findall(r"\$\{(\w+)", read(ROOT / "docker-compose.yml")))
    known = settings() | compose | {PREFIX + name for name in CLIENT_VARIABLES}
    named = set(re.findall(r"\bTUNESMITH_[A-Z_]*[A-Z]\b(?![_<{])", read(path)))
    assert named <= known


@pytest.mark.parametrize("path", DOCS, ids=IDS)
def test_metrics_named_in_documents_exist(path: Path) -> None:
    packages = {item.name for root in (*SERVERS, "client") for item in (ROOT / root).glob("tunesmith*")}
    own = set(re.findall(r"`(tunesmith_\w+)", tables.metrics()))
    process = {"tunesmith_process_resident_memory_bytes", "tunesmith_process_cpu_seconds_total"}
    assert set(re.findall(r"\btunesmith_\w+", read(path))) <= packages | own | process


def test_every_metric_is_measured_somewhere() -> None:
    names = [name for name in vars(type(METRICS)) if not name.startswith("_")]
    source = "\n".join(read(path) for root in SERVERS for path in (ROOT / root).rglob("*.py"))
    assert [n for n in names if not re.search(rf"\b(METRICS|METERS)\.{n}\b", source)] == []


@pytest.mark.parametrize("path", DOCS, ids=IDS)
def test_commands_shown_exist(path: Path) -> None:
    wrong = []
    for words in re.findall(r"(?:^|\$ |; |&& )tunesmith ([a-z][a-z- ]*)", code_of(path), re.MULTILINE):
        name, *rest = words.split()
        command = cli.get_command(click.Context(cli), name)
        if command is None or (isinstance(command, click.Group) and rest and rest[0] not in command.commands):
            wrong.append(words)
    assert wrong == []


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", read(ROOT / "Makefile"), re.MULTILINE))


@pytest.mark.parametrize("path", DOCS, ids=IDS)
def test_make_targets_shown_exist(path: Path) -> None:
    assert set(re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", code_of(path), re.MULTILINE)) <= make_targets()


def test_every_make_target_and_command_is_documented() -> None:
    told = "\n".join(code_of(path) for path in DOCS)
    missing = [f"make {name}" for name in make_targets() if f"make {name}" not in told]
    missing += [f"tunesmith {name}" for name in COMMANDS if f"tunesmith {name}" not in told]
    assert missing == []


def anchors(path: Path) -> set[str]:
    """What a heading is called in a link."""
    titles = re.findall(r"^#+ (.+)$", read(path), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCS, ids=IDS)
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)]*)\)", re.sub(r"`[^`\n]*`", "", read(path))):
        if "://" not in target:
            file = path.parent / target if target else path
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("path", DOCS, ids=IDS)
def test_files_named_in_documents_exist(path: Path) -> None:
    folders = "proto|client|kit|services|trainer|gateway|deploy|tests|bench|docs|examples"
    named = re.findall(rf"`((?:{folders})/[\w./-]+)`", read(path))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_subject_of_the_registry_is_documented() -> None:
    source = "\n".join(read(path) for path in (ROOT / "services" / "tunesmith_registry").glob("*.py"))
    said = re.findall(r'subjects\.event\(\w+(?:\.\w+)?, "(\w+)", \w+(?:\.\w+)?, "(\w+)"\)', source)
    said += [("job", name) for name in re.findall(r'self\._answer\([^"]*"(\w+)", "\w+"', source)]
    assert len(said) == 9, "the search finds something else"
    told = read(ROOT / "docs" / "events.md")
    shown = {(entity, name): f".{entity}.{{{entity}}}.evt.{name}`" for entity, name in said}
    assert [key for key, text in shown.items() if text not in told] == []


# Where a reason stands among the arguments of what makes a failure.
REASON_AT = {"invalid_input": 0, "infra": 0, "_failed": 1, "_reason": 1, "TrainerError": 1, "Failure": 1}


def failure_reasons() -> Iterator[str]:
    folders = ("trainer/tunesmith_trainer", "trainer/tunesmith_agent", "services/tunesmith_jobs")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.Call):
                yield from _reason(node)


def _reason(call: ast.Call) -> Iterator[str]:
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    at = REASON_AT.get(name, -1)
    given = list(call.args[at : at + 1]) if at >= 0 else []
    if name == "Failure":
        given += [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
    for value in given:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value


def test_every_reason_of_a_failed_job_is_documented() -> None:
    reasons = set(failure_reasons())
    assert len(reasons) > 15, "the search finds nothing"
    told = "".join(
        read(ROOT / "docs" / name) for name in ("training.md", "evaluation.md", "chat.md", "cli.md")
    )
    assert sorted(reason for reason in reasons if f"`{reason}`" not in told) == []


def test_readme_names_every_folder() -> None:
    ignored = {".git", ".venv", "build", "node_modules"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert [name for name in sorted(folders - ignored) if f"{name}/" not in read(ROOT / "README.md")] == []
