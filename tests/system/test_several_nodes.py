"""A job over several nodes: reserved as a gang, trained as one, ended as one."""

import os
import signal

import pytest

from tests.support.jobs import check_whole, output_digest, spec, trainers, wait_state, wait_step
from tests.support.platform import Platform
from tests.support.processes import runs


@pytest.mark.distributed
def test_a_gang_trains_as_one_and_a_lost_rank_on_another_node_gives_the_same_bits(
    distributed_platform: Platform,
) -> None:
    platform = distributed_platform
    with platform.client() as client:
        alone = client.jobs.submit(spec(250, logical_shards=2)).wait(300)
        gang = {**spec(250, logical_shards=2), "resources": {"num_nodes": 2}}
        job = client.jobs.submit(gang)
        wait_step(client, job.name, 3, seconds=300)
        (attempt,) = job.attempts()
        assert set(attempt.nodes) == {"node-a", "node-b"}
        pids = {node: trainers(platform.root / "data" / node, job.id) for node in attempt.nodes}
        (lost,) = pids[attempt.nodes[1]]
        os.kill(lost, signal.SIGKILL)
        done = wait_state(client, job.name, "SUCCEEDED", seconds=400)
        _, first = done.attempts()
        assert first.failure.message.startswith("rank 1 died"), first.failure
        assert not any(runs(pid) for each in pids.values() for pid in each)
        assert output_digest(client, done) == output_digest(client, alone)
        check_whole(platform, done, 250)
        assert all(not node.jobs for node in client.nodes.list())
