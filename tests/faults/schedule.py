"""Which fault comes when: a pure function of the seed, printed and repeatable."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of fault. `hold`: how long it lasts, in seconds, from and to; `weight`: how often it comes."""

    name: str
    weight: float
    hold: tuple[float, float]
    modes: tuple[str, ...] = ("embedded", "distributed")


# Whoever is killed comes back after `hold`, as under any supervisor.
KINDS = (
    Kind("kill_trainer", 5, (0, 0)),
    Kind("stop_trainer", 1, (0.5, 4)),
    Kind("damage_checkpoint", 2, (0, 0)),
    Kind("damage_cache", 1, (0, 0)),
    Kind("kill_nats", 2, (0, 2)),
    Kind("stop_nats", 1, (0.5, 4)),
    Kind("wipe_bus", 1.5, (0, 3)),
    Kind("delete_stream", 1.5, (0, 0)),
    Kind("kill_up", 3, (0, 3), ("embedded",)),
    Kind("stop_up", 1, (0.5, 4), ("embedded",)),
    Kind("kill_agent", 2, (0, 3), ("distributed",)),
    Kind("stop_agent", 1, (0.5, 4), ("distributed",)),
    Kind("kill_jobs", 2, (0, 3), ("distributed",)),
    Kind("stop_jobs", 1, (0.5, 4), ("distributed",)),
    Kind("kill_registry", 1, (0, 3), ("distributed",)),
    Kind("kill_metrics", 1.5, (0, 3), ("distributed",)),
    Kind("stop_metrics", 1, (0.5, 4), ("distributed",)),
    Kind("kill_gateway", 1, (0, 3), ("distributed",)),
    Kind("kill_postgres", 1.5, (0, 3), ("distributed",)),
    Kind("stop_postgres", 1, (0.5, 4), ("distributed",)),
    Kind("cut_hold", 1, (1, 6), ("distributed",)),
    Kind("cut_reset", 1, (0, 4), ("distributed",)),
    Kind("cut_wire", 1, (1, 6), ("distributed",)),
    Kind("cut_one_way", 1, (1, 6), ("distributed",)),
    Kind("lose_node", 0.3, (22, 26), ("distributed",)),
    Kind("full_disk", 0.7, (1, 4)),
    Kind("fail_fsync", 0.7, (2, 5)),
)


# Against the trainers of one job, and nobody else.
AIMED = ("kill_trainer", "stop_trainer", "damage_checkpoint", "damage_cache", "fail_fsync")


LULL_EVERY = 20  # faults
LULL_SECONDS = 15.0  # before and after one that is to be alone


@dataclass(frozen=True)
class Blow:
    """One fault of a schedule. `gap`: seconds since the one before began; `draw`: seeds its own choices."""

    number: int
    kind: str
    gap: float
    hold: float
    draw: int


def kinds_of(mode: str) -> list[str]:
    """Names of the kinds that a form of the platform knows."""
    return [kind.name for kind in KINDS if mode in kind.modes]


def schedule(seed: int, num_blows: int, seconds: float, mode: str, chosen: Sequence[str]) -> list[Blow]:
    """Returns `num_blows` faults that begin within about `seconds`; the same arguments give the same ones.

    Long schedules have lulls, which come on top: now and then one trainer is killed and nothing else happens,
    so that there is a figure of what recovery takes when nothing is in its way.
    """
    rng = random.Random(f"{seed}:{mode}")
    kinds = [kind for kind in KINDS if kind.name in chosen and mode in kind.modes]
    assert kinds, f"none of {', '.join(chosen)} is a fault of the {mode} form"
    blows, lull = [], False
    for number in range(num_blows):
        kind = rng.choices(kinds, [kind.weight for kind in kinds])[0]
        gap = min(rng.expovariate(num_blows / seconds), 4 * seconds / num_blows)
        hold = rng.uniform(*kind.hold)
        before, lull = lull, "kill_trainer" in chosen and number % LULL_EVERY == LULL_EVERY - 1
        if lull or before:
            gap = LULL_SECONDS
        blows.append(Blow(number, "kill_trainer" if lull else kind.name, gap, hold, rng.getrandbits(32)))
    return blows
