"""The command line of the chaos suite."""

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.faults import campaign
from tests.faults.schedule import KINDS, kinds_of
from tests.faults.site import MODES

_ABOUT = """\
Makes faults at a running platform while clients submit, repeat and cancel jobs; then checks that nothing
promised was lost, nothing came twice, and every job's weights are bit for bit those of an undisturbed run.
The last line on standard output is one JSON object; exit code 1 when a promise was broken, with the seed."""


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, help="of schedule and clients (default: a new one, printed)")
    parser.add_argument("--kills", type=int, default=20, help="number of faults (default 20)")
    parser.add_argument(
        "--duration", type=float, help="seconds in which they begin (default: 2.5 or 4 a fault)"
    )
    parser.add_argument(
        "--layer",
        choices=("processes", "sim"),
        default="processes",
        help="real processes, or the control plane in one thread under a virtual clock (default processes)",
    )
    parser.add_argument("--stories", type=int, default=200, help="of the layer sim: how many (default 200)")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="of the layer sim: processes (default: cores)",
    )
    parser.add_argument("--mode", choices=MODES, default="embedded", help="form of the platform")
    parser.add_argument("--steps", type=int, help="steps of the longest job (default: 300 or 150)")
    parser.add_argument("--clients", type=int, default=3, help="users that submit at once (default 3)")
    parser.add_argument(
        "--faults",
        default="all",
        help="kinds of faults, separated by commas, or all: " + ", ".join(kind.name for kind in KINDS),
    )
    parser.add_argument("--keep", type=Path, help="work in this folder and leave everything there")
    return parser


def main() -> int:
    """Runs what is asked for and returns the exit code."""
    parser = _arguments()
    asked = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())  # outages are our own doing
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whatever was started must be ended too
    seed = asked.seed if asked.seed is not None else random.SystemRandom().getrandbits(31)
    if asked.layer == "sim":
        return _simulate(asked.stories, seed, asked.workers)
    known = kinds_of(asked.mode)
    kinds = known if asked.faults == "all" else asked.faults.split(",")
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        parser.error(f"the {asked.mode} form knows no {', '.join(unknown)}; it knows {', '.join(known)}")
    # A fault hurts a job on many processes for longer: shorter jobs see as many of them.
    gap, steps = (2.5, 300) if asked.mode == "embedded" else (4.0, 150)
    seconds = asked.duration or gap * asked.kills
    order = campaign.Order(asked.mode, seed, asked.kills, seconds, kinds, asked.steps or steps, asked.clients)
    campaign.say(f"seed {seed}, {asked.kills} faults in {order.seconds:g} s, {asked.mode}")
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
        outcome = campaign.run(order, asked.keep)
    else:
        with tempfile.TemporaryDirectory(prefix="tunesmith-faults-") as folder:
            outcome = campaign.run(order, Path(folder))
    return _tell(outcome, seed)


def _simulate(stories: int, seed: int, workers: int) -> int:
    """Tells stories and returns the exit code; the report is one JSON line too."""
    if workers > 1:
        return _simulate_on(workers, stories, seed)
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a story
        again = [*sys.orig_argv, "--seed", str(seed)]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": "0"})
    from tests.faults.sim import runner  # it costs a second that the other layer need not spend

    told = runner.tell(stories, seed)
    campaign.say(told.broken)
    if told.broken:
        campaign.say(f"told again by: --layer sim --workers 1 --seed {seed} --stories {stories}")
    return _report(seed, told.stories, told.seconds, bool(told.broken))


def _simulate_on(workers: int, stories: int, seed: int) -> int:
    """Shares the stories out; each worker has a seed of its own, which it names when a law is broken."""
    command = [sys.executable, "-m", "tests.faults", "--layer", "sim", "--workers", "1"]
    children = [
        subprocess.Popen(
            [*command, "--seed", str(seed + number), "--stories", str(-(-stories // workers))],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(workers)
    ]
    reports = [json.loads(child.communicate()[0]) for child in children]
    broken = any(report["broken"] for report in reports)
    told = Counter[str]()
    seconds: dict[str, float] = {}
    for report in reports:
        told.update(report["stories"])
        # The workers tell each kind at about the same time.
        seconds = {kind: max(spent, seconds.get(kind, 0.0)) for kind, spent in report["seconds"].items()}
    return _report(seed, told, seconds, broken)


def _report(seed: int, stories: Mapping[str, int], seconds: Mapping[str, float], broken: bool) -> int:
    report = {
        "seed": seed,
        "stories": dict(stories),
        "seconds": {kind: round(spent, 1) for kind, spent in seconds.items()},
        "stories_per_minute": {kind: round(60 * stories[kind] / max(seconds[kind], 0.1)) for kind in stories},
        "broken": broken,
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if broken else 0


def _tell(outcome: campaign.Outcome, seed: int) -> int:
    for kind, why in outcome.skipped.items():
        campaign.say(f"SKIPPED {kind}: {why}")
    for problem in outcome.problems:
        campaign.say(f"BROKEN (seed {seed}): {problem}")
    sys.stdout.write(json.dumps(outcome.report) + "\n")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
