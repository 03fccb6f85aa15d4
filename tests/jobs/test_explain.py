"""ExplainJob: the change it names starts the job at the next pass, every time."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict

from tests.jobs.stage import CALLER, Stage, stage
from tunesmith.api.jobs.v1 import external_pb2, jobs_pb2, queue_pb2, spec_pb2, state_pb2, verbs_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_jobs import pace
from tunesmith_jobs.external import ExternalRuns

GIB = 1 << 30


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(f"sqlite:///{tmp_path}/jobs.db") as found:
        yield found


async def make(jobs: Stage, name: str, change: queue_pb2.SuggestedChange) -> str:
    """Makes the change as a person would; returns the job that is to start: what a job asks for is frozen."""
    target, value = change.target, change.value
    if target == name and value == "RESUME":
        await jobs.verbs.resume(verbs_pb2.ResumeJobRequest(name=name), CALLER)
    elif target == "spec.resources.priority":
        await jobs.verbs.update(verbs_pb2.UpdateJobRequest(name=name, priority=int(value)), CALLER)
    elif target.startswith("spec.resources."):
        return await _again(jobs, name, target.removeprefix("spec.resources."), value)
    elif target.startswith("nodes/"):
        assert value == "READY"
        node = await jobs.fleet.get(target)
        if node.state == nodes_pb2.NODE_STATE_LOST:
            await jobs.fleet.set_reachable(node.node_id, True)
        else:
            await jobs.fleet.uncordon(nodes_pb2.UncordonNodeRequest(name=target), CALLER)
    elif target.endswith("/quota"):
        limits = {limit: int(number) for limit, number in (pair.split("=") for pair in value.split(","))}
        await jobs.set_quota(target.split("/")[1], **limits)
    else:
        assert value == "PAUSE"
        await jobs.verbs.pause(verbs_pb2.PauseJobRequest(name=target), CALLER)
        await jobs.report(target, "STOPPING", "CHECKPOINTED")
    return name


async def _again(jobs: Stage, name: str, field: str, value: str) -> str:
    """Submits the job again with one field of its resources changed, in the place of the first."""
    old = await jobs.get(name)
    await jobs.verbs.cancel(jobs_pb2.CancelJobRequest(name=name), CALLER)
    resources = spec_pb2.ResourceSpec()
    resources.CopyFrom(old.spec.resources)
    if field.startswith("node_labels."):
        del resources.node_labels[field.removeprefix("node_labels.")]
    else:
        ParseDict({field: value or ""}, resources)
    resources.ClearField("processes_per_node")  # filled in at the first submission, from the number of GPUs
    asked = {d.name: v for d, v in resources.ListFields() if d.name != "node_labels"}
    return await jobs.queue(name.split("/")[1], node_labels=dict(resources.node_labels), **asked)


Build = Callable[[Stage], Awaitable[str]]


async def busy_slot(jobs: Stage) -> str:
    await jobs.node("n1")
    await jobs.run()
    return await jobs.queue()


async def busy_gpu(jobs: Stage) -> str:
    await jobs.node("n1", slots=4, gpus=2)
    await jobs.run(gpus_per_node=1)
    return await jobs.queue(gpus_per_node=2)


async def busy_gpu_of_the_right_one(jobs: Stage) -> str:
    """Only the second of the running jobs holds enough."""
    await jobs.node("n1", slots=4, gpus=4)
    await jobs.run(gpus_per_node=1)
    await jobs.run(gpus_per_node=3)
    return await jobs.queue(gpus_per_node=3)


async def busy_with_a_better_job(jobs: Stage) -> str:
    await jobs.node("n1")
    await jobs.run(priority=9)
    return await jobs.queue(priority=1)


async def behind_a_higher_priority(jobs: Stage) -> str:
    """One slot of two stays free for nobody but the quota of the other: raising the priority is enough."""
    await jobs.node("n1")
    await jobs.node("n2", gpu="a100")
    await jobs.fleet.cordon(nodes_pb2.CordonNodeRequest(name="nodes/n1"), CALLER)
    waiting = await jobs.queue()
    await jobs.queue(priority=3)
    return waiting


async def cordoned(jobs: Stage) -> str:
    await jobs.node("n1")
    await jobs.fleet.cordon(nodes_pb2.CordonNodeRequest(name="nodes/n1"), CALLER)
    return await jobs.queue()


async def one_of_two_cordoned_fits(jobs: Stage) -> str:
    await jobs.node("n1", memory=GIB)
    await jobs.node("n2", memory=8 * GIB)
    for name in ("n1", "n2"):
        await jobs.fleet.cordon(nodes_pb2.CordonNodeRequest(name=f"nodes/{name}"), CALLER)
    return await jobs.queue(memory_bytes=4 * GIB)


async def lost(jobs: Stage) -> str:
    await jobs.node("n1")
    await jobs.fleet.set_reachable("n1", False)
    return await jobs.queue()


async def memory(jobs: Stage) -> str:
    await jobs.node("n1", memory=8 * GIB)
    await jobs.node("n2", memory=16 * GIB)
    return await jobs.queue(memory_bytes=20 * GIB)


async def memory_where_the_largest_is_busy(jobs: Stage) -> str:
    await jobs.node("n1", memory=8 * GIB)
    await jobs.node("n2", memory=16 * GIB)
    await jobs.run(memory_bytes=16 * GIB)
    return await jobs.queue(memory_bytes=20 * GIB)


async def label(jobs: Stage) -> str:
    await jobs.node("n1", zone="a")
    return await jobs.queue(node_labels={"zone": "b"})


async def one_of_two_labels(jobs: Stage) -> str:
    await jobs.node("n1", zone="a", disk="ssd")
    return await jobs.queue(node_labels={"zone": "a", "disk": "nvme"})


async def named_node(jobs: Stage) -> str:
    await jobs.node("n1")
    return await jobs.queue(node="n7")


async def named_node_is_busy(jobs: Stage) -> str:
    await jobs.node("n1")
    await jobs.node("n2")
    await jobs.run(node="n1")
    return await jobs.queue(node="n1")


async def too_many_gpus(jobs: Stage) -> str:
    await jobs.node("n1", gpus=2)
    return await jobs.queue(gpus_per_node=8)


async def no_gpus_at_all(jobs: Stage) -> str:
    await jobs.node("n1")
    return await jobs.queue(gpus_per_node=1)


async def quota_of_jobs(jobs: Stage) -> str:
    await jobs.node("n1", slots=4)
    await jobs.set_quota("default", max_running_jobs=1)
    await jobs.run()
    return await jobs.queue()


async def quota_of_gpus(jobs: Stage) -> str:
    await jobs.node("n1", slots=4, gpus=8)
    await jobs.set_quota("default", max_gpus=2, max_running_jobs=9)
    return await jobs.queue(gpus_per_node=4)


async def both_quotas(jobs: Stage) -> str:
    await jobs.node("n1", slots=4, gpus=8)
    await jobs.set_quota("default", max_gpus=2, max_running_jobs=1)
    await jobs.run(gpus_per_node=2)
    return await jobs.queue(gpus_per_node=2)


async def quota_behind_another_of_the_project(jobs: Stage) -> str:
    """The one before it would use up a raise by one: the raise named counts it in."""
    await jobs.node("n1", slots=9)
    await jobs.set_quota("default", max_running_jobs=1)
    await jobs.run()
    await jobs.queue(node="gone")
    await jobs.queue(memory_bytes=1 << 60)
    return await jobs.queue()


async def paused(jobs: Stage) -> str:
    await jobs.node("n1")
    name = await jobs.queue()
    await jobs.verbs.pause(verbs_pb2.PauseJobRequest(name=name), CALLER)
    return name


async def room_kept_for_an_older_one(jobs: Stage) -> str:
    """An older job has waited long for two GPUs, and the one that is free is kept for it."""
    await jobs.node("n1", slots=4, gpus=2)
    await jobs.run(gpus_per_node=1)
    await jobs.queue(gpus_per_node=2)
    jobs.clock.pass_by(1000)
    return await jobs.queue(gpus_per_node=1)


FLEETS: dict[Build, tuple[str, str]] = {
    busy_slot: ("NO_FREE_SLOT", "projects/"),
    busy_gpu: ("NO_FREE_GPU", "projects/"),
    busy_gpu_of_the_right_one: ("NO_FREE_GPU", "projects/"),
    busy_with_a_better_job: ("NO_FREE_SLOT", "projects/"),
    behind_a_higher_priority: ("NO_FREE_SLOT", "nodes/n1"),
    cordoned: ("NODE_CORDONED", "nodes/n1"),
    one_of_two_cordoned_fits: ("NODE_CORDONED", "nodes/n2"),
    lost: ("NODE_NOT_READY", "nodes/n1"),
    memory: ("UNSATISFIABLE", "spec.resources.memory_bytes"),
    memory_where_the_largest_is_busy: ("UNSATISFIABLE", "spec.resources.memory_bytes"),
    label: ("UNSATISFIABLE", "spec.resources.node_labels.zone"),
    one_of_two_labels: ("UNSATISFIABLE", "spec.resources.node_labels.disk"),
    named_node: ("UNSATISFIABLE", "spec.resources.node"),
    named_node_is_busy: ("NO_FREE_SLOT", "projects/"),
    too_many_gpus: ("UNSATISFIABLE", "spec.resources.gpus_per_node"),
    no_gpus_at_all: ("UNSATISFIABLE", "spec.resources.gpus_per_node"),
    quota_of_jobs: ("QUOTA", "projects/default/quota"),
    quota_of_gpus: ("QUOTA", "projects/default/quota"),
    both_quotas: ("QUOTA", "projects/default/quota"),
    quota_behind_another_of_the_project: ("QUOTA", "projects/default/quota"),
    paused: ("PAUSED", "projects/"),
    room_kept_for_an_older_one: ("ROOM_HELD", "spec.resources.priority"),
}


@pytest.mark.parametrize("build", FLEETS, ids=lambda build: build.__name__)
async def test_the_change_that_is_named_starts_the_job_at_the_next_pass(jobs: Stage, build: Build) -> None:
    rule, target = FLEETS[build]
    name = await build(jobs)
    if rule != "PAUSED":
        assert (await jobs.explain(name)).rule == rule, "before any pass"
        await jobs.scheduler.run_once()
        assert await jobs.state(name) != "STARTING"
        assert await jobs.why(name) == rule, "the condition says the same"
    found = await jobs.explain(name)
    assert found.rule == rule
    assert found.message
    assert found.change.target.startswith(target), found.change
    assert found.change.text
    started = await make(jobs, name, found.change)
    await jobs.scheduler.run_once()
    assert await jobs.state(started) == "STARTING", found.change


async def test_each_node_says_what_keeps_the_job_off_it(jobs: Stage) -> None:
    await jobs.node("a", memory=GIB)
    await jobs.node("b", slots=2, gpus=1, memory=8 * GIB)
    await jobs.node("c", gpus=1, memory=8 * GIB)
    await jobs.node("d", memory=8 * GIB)
    await jobs.node("e", gpus=1, memory=8 * GIB, zone="z")
    await jobs.run(node="b", gpus_per_node=1)
    await jobs.run(node="c")
    await jobs.fleet.cordon(nodes_pb2.CordonNodeRequest(name="nodes/e"), CALLER)
    found = await jobs.explain(await jobs.queue(gpus_per_node=1, memory_bytes=2 * GIB))
    assert {verdict.node: verdict.rule for verdict in found.nodes} == {
        "nodes/a": "MEMORY", "nodes/b": "NO_FREE_GPU", "nodes/c": "NO_FREE_SLOT", "nodes/d": "GPUS",
        "nodes/e": "NODE_CORDONED",
    }  # fmt: skip
    assert all(verdict.message for verdict in found.nodes)


async def test_the_place_in_the_queue_counts_those_before_it(jobs: Stage) -> None:
    await jobs.node("n1")
    await jobs.run()
    names = [await jobs.queue() for _ in range(3)] + [await jobs.queue(priority=1)]
    assert [(await jobs.explain(name)).queue_position for name in names] == [1, 2, 3, 0]


async def test_no_change_is_named_where_none_alone_would_do(jobs: Stage) -> None:
    await jobs.node("n1", memory=GIB)
    found = await jobs.explain(await jobs.queue(memory_bytes=2 * GIB, node_labels={"x": "y"}))
    assert found.rule == "UNSATISFIABLE"
    assert not found.HasField("change")


async def test_what_runs_or_has_ended_is_blocked_by_nothing(jobs: Stage) -> None:
    await jobs.node("n1")
    name = await jobs.run()
    assert (await jobs.explain(name)).rule == ""
    waiting = await jobs.queue()
    await jobs.report(name, "COMPLETED")
    found = await jobs.explain(waiting)
    assert (found.rule, found.change.target) == ("", "")
    assert found.nodes[0].rule == ""
    await jobs.verbs.cancel(jobs_pb2.CancelJobRequest(name=waiting), CALLER)
    assert (await jobs.explain(waiting)).message == "it has ended"


async def test_a_job_that_should_give_way_is_named_as_people_know_it(jobs: Stage) -> None:
    await jobs.node("n1")
    busy = await jobs.get(await jobs.run())
    waiting = await jobs.queue("elsewhere")
    found = await jobs.explain(waiting)
    assert f"`tunesmith --project default pause {busy.display_name}`" in found.change.text
    await jobs.verbs.cancel(jobs_pb2.CancelJobRequest(name=waiting), CALLER)
    found = await jobs.explain(await jobs.queue())
    assert found.change.text.endswith(f"`tunesmith pause {busy.display_name}`")
    assert found.change.target == busy.name, "programs get the resource"


async def test_runs_of_programs_do_not_hide_how_fast_our_jobs_trained(
    jobs: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_NEWEST", 3)
    await jobs.node("n1")
    name = await jobs.run()
    progress = state_pb2.Progress(step=100, training_seconds=50.0)
    await jobs.report(name, "COMPLETED", progress=progress)
    runs = ExternalRuns(jobs.db, jobs.clock)
    for _ in range(4):
        await runs.start(external_pb2.StartExternalRunRequest(parent="projects/default"), CALLER)
    job = await jobs.get(name)
    assert (await jobs.explainer.foresee(job)).num_jobs == 1
