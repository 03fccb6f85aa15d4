"""Memory of the page while ten charts of ten curves each are live: `python -m bench.ui_memory --minutes 30`.

A program logs a hundred values ten times a second with `tunesmith.log`; each minute the browser is asked for
its heap after a collection of garbage. The last line is JSON.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.ui import WIDE, logging_program
from tests.clients.test_page import FOLDER
from tests.support.platform import embedded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=30, help="how long the charts are watched")
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("a Chromium is needed (apt-get install chromium)")
    seen: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        embedded(Path(folder)) as platform,
        logging_program(platform, WIDE) as program,
    ):
        assert program.stdout is not None
        job = program.stdout.readline().strip()
        command = ["node", "memory.mjs", platform.http, platform.token, chromium, job, str(options.minutes)]
        with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as browser:
            assert browser.stdout is not None
            for line in browser.stdout:
                seen.append(json.loads(line))
                sys.stdout.write(line)
                sys.stdout.flush()
    if len(seen) != options.minutes + 1 or seen[-1]["last"] == seen[0]["last"]:
        raise SystemExit("the page did not stay live to the end")
    # The first minutes fill what is kept; from then on nothing may grow.
    later = seen[len(seen) // 3 :]
    half = len(later) // 2
    before, after = (
        statistics.median(each["heap_mb"] for each in part) for part in (later[:half], later[half:])
    )
    found = {"heap_mb_before": round(before, 1), "heap_mb_after": round(after, 1)}
    found |= {"nodes_before": later[0]["nodes"], "nodes_after": later[-1]["nodes"]}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
