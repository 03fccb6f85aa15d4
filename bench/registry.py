"""`make bench-registry`: import, search, transfers, chat in one run. The last line is one JSON object."""

import argparse
import json
import re
import sys

from bench.__main__ import run

TARGETS = {
    "import_mb_per_s": ">= 100",
    "import_peak_mb": "<= 500",
    "near_duplicate_rows_per_s": ">= 50,000",
    "upload_of_copy": ">= 0.7",
    "download_of_copy": ">= 0.7",
    "chat_served_first_token_ratio": "<= 1.3",
    "chat_served_speed_ratio": ">= 0.95",
}
_SEARCH = "<= 50"  # milliseconds at the 99th percentile, over 10,000 models
_LISTING = "<= 100"  # 10,000 versions with facets


def main() -> None:
    """Runs the parts one after the other and prints one table."""
    parser = argparse.ArgumentParser(prog="bench.registry", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400, help="size of what is imported and sent")
    parser.add_argument("--models", type=int, default=10_000, help="models that are searched")
    options = parser.parse_args()
    found = run("bench.registry_import", "--megabytes", str(options.megabytes))
    searched = run("bench.registry_search", "--models", str(options.models))
    found |= {_key(name): value for name, value in searched.items()} | run("bench.chat")
    for name, value in found.items():
        sys.stdout.write(f"{name:60} {value:>14,.6g}   {_target(name)}\n")
    sys.stdout.write(json.dumps(found) + "\n")


def _key(name: str) -> str:
    return f"search_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}_ms"


def _target(name: str) -> str:
    if not name.startswith("search_") or not name.endswith("p99_ms"):
        return TARGETS.get(name, "")
    return _LISTING if "versions" in name else _SEARCH


if __name__ == "__main__":
    main()
