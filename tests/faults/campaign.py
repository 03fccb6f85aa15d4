"""A campaign against real processes: undisturbed runs, faults under load, peace, the reckoning."""

import contextlib
import json
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from tests.faults import figures
from tests.faults.checker import ACCEPTED, Checker, Findings, missing_points
from tests.faults.disks import small_disk, why_no_small_disk
from tests.faults.history import History
from tests.faults.injections import Injector
from tests.faults.load import Caller
from tests.faults.schedule import Blow, schedule
from tests.faults.shapes import shapes
from tests.faults.site import Site, running
from tests.faults.spools import Witness
from tests.support.jobs import output_digest, wait_state
from tests.support.network import why_no_namespaces
from tests.support.processes import wait_for
from tunesmith import Client
from tunesmith.errors import TunesmithError

_SETTLE_SECONDS = 480.0
_DRAIN_SECONDS = 180.0
_READY = "Tunesmith is up"


@dataclass(frozen=True)
class Order:
    """What a campaign is asked for. `seconds`: within which the faults begin; `steps`: of the longest job."""

    mode: str
    seed: int
    kills: int
    seconds: float
    kinds: Sequence[str]
    steps: int = 300
    num_clients: int = 3
    shapes: Sequence[str] = ()  # names; none: all


@dataclass
class Outcome:
    """What came of it: the report to print, each broken promise, and what could not be tried here."""

    report: dict[str, Any]
    problems: list[str]
    skipped: dict[str, str] = field(default_factory=dict)


def run(order: Order, root: Path) -> Outcome:
    """Runs a campaign on a platform of its own in an empty folder, and looks for what outlived it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(small_disk(root, order.mode))
        site = stack.enter_context(running(order.mode, root))
        site.platform.load_inputs()
        outcome = on(site, order, root)
    outcome.problems += _orphans(site)
    return outcome


def on(site: Site, order: Order, root: Path) -> Outcome:
    """Runs a campaign on a platform that has its inputs; `root` takes the history."""
    skipped = unavailable(order, site)
    kinds = [kind for kind in order.kinds if kind not in skipped]
    blows = schedule(order.seed, order.kills, order.seconds, order.mode, kinds)
    campaign = _Campaign(order, site, root)
    try:
        problems, report = campaign.run(blows)
    finally:
        campaign.history.close()
    return Outcome(report, problems, skipped)


def say(line: str) -> None:
    """Tells whoever watches; the one line on standard output is the report."""
    sys.stderr.write(line + "\n")


def unavailable(order: Order, site: Site) -> dict[str, str]:
    """Kinds that cannot be made here, with the reason."""
    reasons = {
        "full_disk": why_no_small_disk(site),
        "cut_wire": (no_network := why_no_namespaces()),
        "cut_one_way": no_network,
        "fail_fsync": "" if shutil.which("strace") else "there is no strace",
    }
    return {kind: why for kind, why in reasons.items() if why and kind in order.kinds}


def _orphans(site: Site) -> list[str]:
    """Processes that outlived a platform whose jobs have all ended (the last ones still take their leave)."""
    left = []
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not site.marked(), 90, "everything has ended")
    for process in site.marked():
        left.append(f"process {process.pid} was left: {' '.join(process.cmdline())}")
        process.kill()
    return left


class _Campaign:
    def __init__(self, order: Order, site: Site, root: Path) -> None:
        self._order, self._site, self._root = order, site, root
        self._shapes = shapes(order.steps, order.mode, order.shapes)
        self.history = History(root / "history.jsonl")
        self._witness = Witness(site)
        self._injector = Injector(site, self.history)
        self._kills: Counter[str] = Counter()
        self._refused_starts = 0
        self._problems: list[str] = []

    def run(self, blows: Sequence[Blow]) -> tuple[list[str], dict[str, Any]]:
        self._witness.start()
        reference = self._undisturbed()
        callers = [
            Caller(number, self._order.seed, self._site, self.history, self._shapes)
            for number in range(self._order.num_clients)
        ]
        for caller in callers:
            caller.start()
        self._make(blows)
        self._settle(callers)
        with self._site.platform.client() as client:
            self._drain(client)
            self._witness.stop()
            checker = Checker(self._site, client, self.history, self._witness, self._shapes, reference)
            findings = checker.check()
        self._problems += [problem for caller in callers for problem in caller.problems]
        return self._problems + findings.problems, self._report(findings)

    def _undisturbed(self) -> dict[str, str]:
        """Weights of each spec when nobody disturbs it."""
        digests = {}
        with self._site.platform.client() as client:
            jobs = {shape.name: client.jobs.submit(shape.undisturbed()) for shape in self._shapes}
            for name, job in jobs.items():
                digests[name] = output_digest(client, wait_state(client, job.name, "SUCCEEDED", seconds=480))
        return digests

    def _make(self, blows: Sequence[Blow]) -> None:
        """Makes every fault at its time, each in a thread, for they overlap; then waits for the last."""
        threads = []
        for blow in blows:
            self._look_for_deaths()
            self._injector.ended.wait(blow.gap)
            thread = threading.Thread(target=self._one, args=(blow,), name=f"blow-{blow.number}", daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join(300)
            if thread.is_alive():
                self._problems.append(f"{thread.name} did not end: a fault of this suite")
        self._injector.ended.set()

    def _one(self, blow: Blow) -> None:
        began = time.time()
        try:
            hit = self._injector.make(blow.kind, blow.hold, blow.draw)
        except Exception as error:
            self._problems.append(f"blow {blow.number} ({blow.kind}) could not be made: {error!r}")
            return
        self.history.add("blow", number=blow.number, fault=blow.kind, began=began, hold=blow.hold, hit=hit)
        if hit:
            self._kills[blow.kind] += 1
        say(f"{blow.number:4d} {blow.kind:18s} {blow.hold:5.1f} s  {hit or 'nothing to hit'}")

    def _look_for_deaths(self) -> None:
        """Who ended without our doing is brought back, as a supervisor would, and that is a finding.

        But a start may be refused for want of room, if it says so.
        """
        for name in self._injector.deaths():
            process = self._site.processes[name]
            said = process.said()
            if name == "up" and _READY not in said and "disk is full" in said and "bug" not in said:
                self._refused_starts += 1
            else:
                self._problems.append(f"{name} ended by itself:\n{process.tail(2000)}")
            process.start()

    def _settle(self, callers: Sequence[Caller]) -> None:
        deadline = time.monotonic() + _SETTLE_SECONDS
        for caller in callers:
            caller.enough.set()
        while any(not caller.join(0.5) for caller in callers) and time.monotonic() < deadline:
            self._look_for_deaths()
        for number, caller in enumerate(callers):
            if not caller.join(0):
                self._problems.append(f"client-{number}'s job did not end in {_SETTLE_SECONDS:g} s of peace")
                caller.give_up.set()
                caller.join(120)

    def _drain(self, client: Client) -> None:
        """Waits until every point that was logged is stored; what is missing then, the checker names."""
        jobs = [fact["job"].rpartition("/")[2] for fact in self.history.read(*ACCEPTED)]

        def drained() -> bool:
            with contextlib.suppress(TunesmithError):
                return not any(missing_points(client, self._witness, job) for job in jobs)
            return False

        with contextlib.suppress(AssertionError):
            wait_for(drained, _DRAIN_SECONDS, "all points are stored")

    def _report(self, found: Findings) -> dict[str, Any]:
        jobs = [fact["job"].rpartition("/")[2] for fact in self.history.read(*ACCEPTED)]
        records = {job: self._witness.records(job) for job in jobs}
        deaths, blows = self.history.read("trainer_killed"), list(self.history.read("blow"))
        moves = {job: figures.moves_of(events) for job, events in found.events.items()}
        got_over = figures.recoveries(deaths, records, moves, blows)
        self._keep("recoveries", (asdict(one) for one in got_over))
        told = (event for events in found.events.values() for event in events)
        self._keep("events", (MessageToDict(event) for event in told))
        return {
            "kills": dict(sorted(self._kills.items())),
            "jobs_accepted": found.jobs_accepted,
            "jobs_lost": found.jobs_lost,
            "points_logged": found.points_logged,
            "points_stored": found.points_stored,
            "points_doubled": found.points_doubled,
            "checkpoints_verified": found.checkpoints_verified,
            "runs": found.runs,
            "weights_identical": found.weights_identical,
            "second_writers": found.second_writers,
            "refused_starts": self._refused_starts,
            "granted": dict(sorted(found.granted.items())),
            "recovery_s": _times([one.seconds for one in got_over]),
            "undisturbed_recovery_s": _times([one.seconds for one in got_over if one.undisturbed]),
            "ettr": figures.effective_share(records),
        }

    def _keep(self, name: str, facts: Iterable[dict[str, Any]]) -> None:
        """Leaves facts for whoever asks afterwards what happened."""
        lines = (json.dumps(fact) + "\n" for fact in facts)
        self._root.joinpath(f"{name}.jsonl").write_text("".join(lines))


def _times(seconds: Sequence[float]) -> dict[str, float | None]:
    return {
        "num": len(seconds),
        "p50": figures.percentile(seconds, 0.5),
        "p99": figures.percentile(seconds, 0.99),
    }
