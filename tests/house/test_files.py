"""What holds for every file of the tree."""

import re
import subprocess
from functools import cache
from pathlib import Path

from tests.house.tables import ROOT

MOST_LINES = 500
GENERATED = ("client/tunesmith/api/", "gateway/web/package-lock.json")
CODE = (".py", ".pyi", ".proto", ".ts", ".mjs", ".svelte", ".css", ".sh")


@cache
def tracked() -> list[str]:
    """Files that are committed or would be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    return [name for name in found if name and (ROOT / name).is_file() and not name.startswith(GENERATED)]


@cache
def text_of(name: str) -> str:
    try:
        return (ROOT / name).read_text("utf-8")
    except UnicodeDecodeError:
        return ""


def test_no_file_of_code_is_longer_than_a_reader_can_hold() -> None:
    code = [name for name in tracked() if Path(name).suffix in CODE]
    assert len(code) > 100
    assert {n: text_of(n).count("\n") for n in code if text_of(n).count("\n") > MOST_LINES} == {}


def test_no_file_names_a_place_of_one_machine() -> None:
    # Written apart, so that this file passes its own test.
    place = re.compile(r"(?<![\w*])/(wo" + r"rk|home/\w)|\.lib" + r"rary\b")
    assert {name: found[0] for name in tracked() if (found := place.search(text_of(name)))} == {}


def test_nothing_is_left_for_later() -> None:
    words = re.compile("TO" + r"DO\b|FIX" + r"ME\b|raise NotImplemented" + "Error")
    assert [name for name in tracked() if words.search(text_of(name))] == []


def test_no_secret_and_no_build_output_is_committed() -> None:
    built = re.compile(r"(^|/)(\.env|node_modules|dist|__pycache__|static)(/|$)|\.(safetensors|gguf|whl)$")
    assert [name for name in tracked() if built.search(name)] == []


def test_folders_of_packages_are_no_packages_themselves() -> None:
    roots = ("proto", "client", "kit", "services", "trainer", "gateway", "deploy")
    assert [root for root in roots if (ROOT / root / "__init__.py").exists()] == []
