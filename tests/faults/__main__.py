"""The command line of the chaos suite."""

import argparse
import json
import logging
import os
import random
import sys
import tempfile
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
    parser.add_argument("--duration", type=float, help="seconds in which they begin (default: 2.5 a fault)")
    parser.add_argument(
        "--layer",
        choices=("processes", "sim"),
        default="processes",
        help="real processes, or the control plane in one thread under a virtual clock (default processes)",
    )
    parser.add_argument("--stories", type=int, default=200, help="of the layer sim: how many (default 200)")
    parser.add_argument("--mode", choices=MODES, default="embedded", help="form of the platform")
    parser.add_argument("--steps", type=int, default=300, help="steps of the longest job (default 300)")
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
    seed = asked.seed if asked.seed is not None else random.SystemRandom().getrandbits(31)
    if asked.layer == "sim":
        return _simulate(asked.stories, seed)
    known = kinds_of(asked.mode)
    kinds = known if asked.faults == "all" else asked.faults.split(",")
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        parser.error(f"the {asked.mode} form knows no {', '.join(unknown)}; it knows {', '.join(known)}")
    order = campaign.Order(
        asked.mode, seed, asked.kills, asked.duration or 2.5 * asked.kills, kinds, asked.steps, asked.clients
    )
    campaign.say(f"seed {seed}, {asked.kills} faults in {order.seconds:g} s, {asked.mode}")
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
        outcome = campaign.run(order, asked.keep)
    else:
        with tempfile.TemporaryDirectory(prefix="tunesmith-faults-") as folder:
            outcome = campaign.run(order, Path(folder))
    return _tell(outcome, seed)


def _simulate(stories: int, seed: int) -> int:
    """Tells stories and returns the exit code; the report is one JSON line too."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a story
        again = [*sys.orig_argv, "--seed", str(seed)]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": "0"})
    from tests.faults.sim import runner  # it costs a second that the other layer need not spend

    told = runner.tell(stories, seed)
    campaign.say(told.broken)
    report = {
        "seed": seed,
        "stories": told.stories,
        "stories_per_minute": round(60 * told.stories / told.seconds),
        "broken": bool(told.broken),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if told.broken else 0


def _tell(outcome: campaign.Outcome, seed: int) -> int:
    for kind, why in outcome.skipped.items():
        campaign.say(f"SKIPPED {kind}: {why}")
    for problem in outcome.problems:
        campaign.say(f"BROKEN (seed {seed}): {problem}")
    sys.stdout.write(json.dumps(outcome.report) + "\n")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
