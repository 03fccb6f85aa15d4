"""What a role imports is what its extras install, so that an image with these alone starts."""

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from sys import stdlib_module_names

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.tables import ROOT

PLACES = ("client", "kit", "services", "trainer", "gateway")
# The modules a role starts from, and its extras: those of deploy/Dockerfile.
ROLES = {
    "client": (["tunesmith.cli", "tunesmith.client"], []),
    "jobs": (["tunesmith_kit.host", "tunesmith_jobs.main"], ["server"]),
    "registry": (["tunesmith_kit.host", "tunesmith_registry.main"], ["server"]),
    "metrics": (["tunesmith_kit.host", "tunesmith_metrics.main"], ["server"]),
    "gateway": (["tunesmith_kit.host", "tunesmith_gateway.main"], ["server"]),
    "agent": (["tunesmith_kit.host", "tunesmith_agent.main"], ["agent"]),
    "trainer": (["tunesmith_trainer.worker"], ["trainer"]),
}


def source(module: str) -> Path | None:
    """File of one of our own modules."""
    for place in PLACES:
        path = ROOT / place / module.replace(".", "/")
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file
    return None


@cache
def imports(file: Path) -> frozenset[str]:
    """Modules a file imports, those inside functions too, but not those for type checkers only."""
    tree = ast.parse(file.read_text("utf-8"))
    return frozenset(name for node in _statements(tree) for name in _imported(node))


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _statements(node)


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reached(start: list[str]) -> set[str]:
    """Names of all modules, ours and others', that are imported from `start` on."""
    seen: set[str] = set()
    todo = list(start)
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            file = source(".".join(parts[:end]))
            if file is not None:
                todo.extend(imports(file) - seen)
    return seen


def installed(extras: list[str]) -> set[str]:
    """Distributions that come with the base dependencies and `extras`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    todo = [Requirement(text) for text in project["dependencies"]]
    for extra in extras:
        todo += [Requirement(text) for text in project["optional-dependencies"][extra]]
    found: set[str] = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name not in found:
            found.add(name)
            todo += _needs(name, wanted.extras or {""})
    return found


def _needs(name: str, extras: set[str]) -> list[Requirement]:
    try:
        every = [Requirement(text) for text in requires(name) or ()]
    except PackageNotFoundError:  # for another platform
        return []
    return [
        each
        for each in every
        if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras)
    ]


@pytest.mark.parametrize("role", ROLES)
def test_imports_of_a_role_come_with_its_extras(role: str) -> None:
    start, extras = ROLES[role]
    providers = packages_distributions()
    have = installed(extras)
    tops = {name.split(".")[0] for name in reached(start)}
    foreign = {top for top in tops if top not in stdlib_module_names and source(top) is None}
    lacking = {
        top for top in foreign if not have & {canonicalize_name(name) for name in providers.get(top, ())}
    }
    assert lacking == set()
