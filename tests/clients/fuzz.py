"""`make test-rest`: schemathesis makes up requests from the OpenAPI document and judges the answers.

Streams of events are left out: they do not end.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.platform import embedded
from tests.support.processes import BIN

_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


def main() -> int:
    """Fuzzes a platform of its own; returns schemathesis' exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=10, help="requests for each operation")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same requests")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, embedded(Path(folder)) as platform:
        command = [
            str(BIN / "schemathesis"), "run", f"{platform.http}/api/v1/openapi.json",
            "--header", f"Authorization: Bearer {platform.token}",
            "--exclude-path-regex", ":(watch|tail)",
            "--phases", "fuzzing",
            "--max-examples", str(given.examples),
            "--seed", str(given.seed),
            "--checks", ",".join(_CHECKS),
            "--request-timeout", "30",
        ]  # fmt: skip
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
