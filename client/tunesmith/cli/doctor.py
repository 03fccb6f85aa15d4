"""`tunesmith doctor`: what is right with an installation, what is not, and what to do about it."""

from __future__ import annotations

import importlib
import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import click
from rich.markup import escape

from tunesmith import __version__, profile
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith.cli import text
from tunesmith.cli.failure import ERROR
from tunesmith.cli.output import print_data
from tunesmith.cli.session import connect, console
from tunesmith.cli.table import print_table
from tunesmith.errors import TunesmithError

OK, WARN, FAIL = "ok", "warn", "fail"
_STYLES = {OK: "green", WARN: "yellow", FAIL: "red"}
_GB = 1e9
_TORCH_SECONDS = 120
_TORCH = (
    "import torch; n = torch.cuda.device_count() if torch.cuda.is_available() else 0; "
    "print(torch.__version__, n, *(torch.cuda.get_device_name(i).replace(' ', '_') for i in range(n)))"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    status: str
    found: str
    remedy: str = ""


Check = Callable[[click.Context], Iterator[Finding]]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> int:
    """Check this installation: Python, packages, profile, server, nodes, disk, torch. Exit 1 when one fails.

    It looks only, and changes nothing. What is not installed here, because this machine needs only the
    client, is left out.
    """
    findings = [finding for check in _CHECKS for finding in _safely(check, ctx)]
    if as_json:
        print_data([asdict(finding) for finding in findings])
    else:
        _print(findings)
    return ERROR if any(finding.status == FAIL for finding in findings) else 0


def _print(findings: list[Finding]) -> None:
    print_table(
        ["", "CHECK", "FOUND"],
        [
            (f"[{_STYLES[one.status]}]{one.status}[/]", one.check, escape(text.one_line(one.found)))
            for one in findings
        ],
        "nothing was checked",
    )
    wrong = [one for one in findings if one.remedy and one.status != OK]
    for one in wrong:
        console().print(f"\n[{_STYLES[one.status]}]{one.check}[/]: {escape(one.remedy)}", soft_wrap=True)
    if not wrong:
        console().print("\n[green]all is well[/green]")


def _safely(check: Check, ctx: click.Context) -> Iterator[Finding]:
    """A check that breaks is a finding too."""
    try:
        yield from check(ctx)
    except Exception as error:
        name = check.__name__.strip("_").replace("_", " ")
        yield Finding(name, WARN, f"could not be checked: {type(error).__name__}: {error}", "report this")


def _python(ctx: click.Context) -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding("python", OK if good else FAIL, found, "" if good else "install Python 3.11 or later")
    yield Finding("tunesmith", OK, __version__)
    for name, least in (("grpcio", 1), ("protobuf", 6)):
        try:
            have = version(name)
        except PackageNotFoundError:
            yield Finding(name, FAIL, "not installed", "pip install tunesmith")
            continue
        old = int(have.split(".")[0]) < least
        yield Finding(name, FAIL if old else OK, have, "pip install --upgrade tunesmith" if old else "")


def _profile(ctx: click.Context) -> Iterator[Finding]:
    given = ctx.find_root().obj
    try:
        chosen = profile.resolve(
            given["address"], given["token"], given["project"], name=given.get("profile")
        )
    except TunesmithError as error:
        yield Finding("profile", FAIL, error.message, error.remedy)
        return
    name = given.get("profile") or profile.chosen()
    yield Finding("profile", OK, f"{name}: {chosen.address}, project {chosen.project}")
    path = profile.profile_path(name=name)
    if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Finding(
            "profile's file", WARN, "others on this machine can read the token", f"chmod 600 {path}"
        )


def _server(ctx: click.Context) -> Iterator[Finding]:
    try:
        client = connect(ctx)
    except TunesmithError:
        return  # said by the profile's check
    with client:
        began = time.time()
        try:
            server = client.fleet.server()
        except TunesmithError as error:
            yield Finding("server", FAIL, error.message, error.remedy)
            return
        ended = time.time()
        yield Finding("server", OK, f"{client.profile.address}, you are {server.principal} ({server.role})")
        yield _versions(server.version)
        if server.HasField("time"):
            yield _clock(server.time.ToNanoseconds() / 1e9, began, ended)
        nodes = list(client.nodes.list())
    ready = [node for node in nodes if node.state == nodes_pb2.NODE_STATE_READY]
    found = f"{len(ready)} of {len(nodes)} ready" if nodes else "none has registered"
    remedy = "" if ready else "start an agent: `tunesmith serve agent`, or `tunesmith up` without --no-agent"
    yield Finding("nodes", OK if ready else WARN, found, remedy)


def _versions(server: str) -> Finding:
    mine, theirs = __version__.split(".")[:2], server.split(".")[:2]
    if mine == theirs:
        return Finding("server's version", OK, server)
    remedy = f"pip install 'tunesmith=={server}', or bring the server to {__version__}"
    return Finding("server's version", WARN, f"{server}, this client is {__version__}", remedy)


def _clock(server: float, began: float, ended: float) -> Finding:
    """The server's clock was read somewhere between our two readings."""
    skew = max(server - ended, began - server, 0.0)
    status = OK if skew < 5 else WARN if skew < 300 else FAIL
    remedy = "" if status == OK else "set the clocks of both machines, for example with chrony"
    return Finding("clock", status, f"{skew:.1f} s apart from the server's", remedy)


def _disk(ctx: click.Context) -> Iterator[Finding]:
    data = os.environ.get("TUNESMITH_DATA_DIR") or "~/.local/share/tunesmith"
    places = {"data": Path(data).expanduser(), "this folder": Path.cwd()}
    for name, path in places.items():
        there = next(each for each in (path, *path.parents) if each.exists())
        free = shutil.disk_usage(there).free
        status = FAIL if free < 0.2 * _GB else WARN if free < 5 * _GB else OK
        remedy = "" if status == OK else f"make room on the disk of {there}: models and checkpoints need it"
        yield Finding(f"disk of {name}", status, f"{text.size(free)} free", remedy)


def _platform(ctx: click.Context) -> Iterator[Finding]:
    """What only machines need that run the platform."""
    if find_spec("tunesmith_kit") is None or find_spec("sqlalchemy") is None:
        yield Finding("platform", OK, "not installed here: this machine is a client")
        return
    try:
        nats = importlib.import_module("tunesmith_kit.nats_server")
        yield Finding("nats-server", OK, str(nats.find_binary()))
    except TunesmithError as error:
        yield Finding("nats-server", FAIL, error.message, error.remedy)
    page = find_spec("tunesmith_gateway")
    folder = Path(page.origin).parent / "static" if page is not None and page.origin else None
    built = folder is not None and (folder / "index.html").exists()
    remedy = "" if built else "in the source tree: make web; a wheel has it built in"
    yield Finding("page", OK if built else WARN, "built" if built else "not built", remedy)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    few = limit != resource.RLIM_INFINITY and limit < 1024
    yield Finding("open files", WARN if few else OK, f"at most {limit}", "ulimit -n 4096" if few else "")


def _trainer(ctx: click.Context) -> Iterator[Finding]:
    """What only nodes need."""
    if find_spec("torch") is None:
        yield Finding("torch", OK, "not installed here: this machine trains nothing")
        return
    # In a process of its own: a driver that does not fit may take the process with it.
    done = subprocess.run(
        [sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=_TORCH_SECONDS, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        yield Finding("torch", FAIL, last, "pip install --force-reinstall 'tunesmith[trainer]'")
        return
    number, count, *names = done.stdout.split()
    yield Finding("torch", OK, number)
    if int(count):
        yield Finding("GPUs", OK, ", ".join(name.replace("_", " ") for name in names))
    elif any(Path("/dev").glob("nvidia[0-9]*")):
        remedy = "install a torch built for the driver's CUDA: `nvidia-smi` shows its version"
        yield Finding("GPUs", FAIL, "the machine has some, torch sees none", remedy)
    else:
        yield Finding("GPUs", OK, "none: jobs run on the CPU")
    yield from _shared_memory()


def _shared_memory() -> Iterator[Finding]:
    place = Path("/dev/shm")
    if not place.is_dir():
        yield Finding("shared memory", WARN, "there is no /dev/shm", "snapshots then go to the disk")
        return
    free = shutil.disk_usage(place).free
    remedy = "" if free >= _GB else "in a container: --shm-size=8g; else: mount -o remount,size=8G /dev/shm"
    yield Finding("shared memory", OK if free >= _GB else WARN, f"{text.size(free)} free", remedy)


_CHECKS: tuple[Check, ...] = (_python, _profile, _server, _disk, _platform, _trainer)
