"""Build hook of the wheel: builds the page with Node.js, so that who installs the wheel needs none.

Without npm the wheel is built without the page, and says so; the server then shows what to do.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface[Any]):
    """Runs before the files of the wheel are gathered; an editable install builds the page by `make web`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds `gateway/web` into the gateway's package unless it lies there already."""
        root = Path(self.root)
        if version == "editable" or (root / "gateway/tunesmith_gateway/static/index.html").exists():
            return
        npm = shutil.which("npm")
        if npm is None:
            self.app.display_warning("no npm: the page is left out of the wheel; install Node.js 20")
            return
        for command in (["ci", "--no-audit", "--no-fund"], ["run", "build"]):
            subprocess.run([npm, *command], cwd=root / "gateway/web", check=True)
