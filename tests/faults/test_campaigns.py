"""Small campaigns against real processes, in both forms; `make chaos` makes long ones."""

from pathlib import Path

import pytest

from tests.faults import campaign
from tests.faults.schedule import kinds_of


@pytest.mark.timeout(420)
@pytest.mark.parametrize(
    ("mode", "seed", "kills"),
    [("embedded", 2, 8), pytest.param("distributed", 3, 6, marks=pytest.mark.distributed)],
)
def test_a_campaign_keeps_every_promise(mode: str, seed: int, kills: int, tmp_path: Path) -> None:
    kinds = [kind for kind in kinds_of(mode) if kind != "lose_node"]  # it lasts half a minute
    order = campaign.Order(mode, seed, kills, 2.0 * kills, kinds, steps=200, num_clients=2, num_shapes=2)
    outcome = campaign.run(order, tmp_path)
    assert outcome.problems == [], f"seed {seed}"
    report = outcome.report
    assert sum(report["kills"].values()) > kills // 2, "most faults must have hit something"
    assert report["jobs_accepted"] == report["runs"] > 0
    assert report["points_logged"] == report["points_stored"] > 0
    assert report["checkpoints_verified"] > 0
    assert report["weights_identical"] > 0
