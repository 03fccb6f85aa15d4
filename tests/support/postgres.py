"""A PostgreSQL server of Debian's package on a free port in a temporary folder."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import free_port, wait_for


def find_binaries() -> Path | None:
    """Returns the folder with `initdb` and `postgres`, the newest version installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).parent if on_path else None


class Postgres:
    """A server; `url` is for the services."""

    def __init__(self, folder: Path) -> None:
        binaries = find_binaries()
        assert binaries is not None, "PostgreSQL is not installed: apt-get install postgresql"
        self._binaries, self._folder = binaries, folder
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
        folder.mkdir()
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(folder, account.pw_uid, account.pw_gid)
        self._run("initdb", "-D", str(folder / "data"), "-U", "postgres", "--auth=trust", "--no-sync")
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it answers; after a kill it waits for the old one's children."""
        self._spawn()
        wait_for(self._up, 120, "PostgreSQL answers")

    def _up(self) -> bool:
        if self._child.poll() is not None:  # children of a killed server still hold its memory
            self._spawn()
        return self._answers()

    def _spawn(self) -> None:
        self._child = subprocess.Popen(
            [
                str(self._binaries / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port),
                "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._folder}",
            ],
            user=self._user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            cwd=self._folder,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        return self._child.pid

    def kill(self) -> None:
        """SIGKILL to the postmaster; its backends end by themselves."""
        self._child.kill()
        self._child.wait()

    def stop(self) -> None:
        """Ends the server and its connections."""
        self._child.send_signal(signal.SIGINT)  # SIGTERM would wait for the connections to end
        self._child.wait(90)

    def _answers(self) -> bool:
        probe = [str(self._binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(probe, check=False).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        subprocess.run(
            command, check=True, user=self._user, capture_output=True, timeout=240, cwd=self._folder
        )


@contextmanager
def running() -> Iterator[Postgres]:
    """Starts a server in a folder of its own (pytest's are closed to the server's user) and ends both."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-postgres-") as folder:
        Path(folder).chmod(0o755)
        server = Postgres(Path(folder) / "cluster")
        try:
            yield server
        finally:
            server.stop()
