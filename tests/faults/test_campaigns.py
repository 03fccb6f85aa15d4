"""Small campaigns against real processes, in both forms; `make chaos` makes long ones."""

from pathlib import Path

import pytest

from tests.faults import campaign
from tests.faults.schedule import kinds_of
from tests.faults.site import Site


def order(mode: str, seed: int, kills: int, shapes: tuple[str, ...]) -> campaign.Order:
    """A campaign that fits into a test."""
    kinds = [kind for kind in kinds_of(mode) if kind != "lose_node"]  # it lasts half a minute
    return campaign.Order(mode, seed, kills, 1.5 * kills, kinds, steps=120, num_clients=2, shapes=shapes)


def check(outcome: campaign.Outcome, seed: int, kills: int) -> None:
    """Every promise was kept, and it was not for want of faults and of work."""
    assert outcome.problems == [], f"seed {seed}"
    report = outcome.report
    assert sum(report["kills"].values()) > kills // 2, "most faults must have hit something"
    assert report["jobs_accepted"] == report["runs"] > 0
    assert report["points_logged"] == report["points_stored"] > 0
    assert report["checkpoints_verified"] > 0
    assert report["weights_identical"] > 0


@pytest.mark.timeout(1500)
def test_a_campaign_on_one_process_keeps_every_promise(tmp_path: Path) -> None:
    check(campaign.run(order("embedded", 2, 6, ("lora", "ranks")), tmp_path), 2, 6)


@pytest.mark.timeout(1500)
@pytest.mark.distributed
def test_a_campaign_on_many_processes_keeps_every_promise(distributed_site: Site, tmp_path: Path) -> None:
    outcome = campaign.on(distributed_site, order("distributed", 3, 6, ("accumulating", "gang")), tmp_path)
    check(outcome, 3, 6)
