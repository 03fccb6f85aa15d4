"""What must be true of the control plane at every instant, and of its whole history at the end."""

from collections import Counter, defaultdict

from sqlalchemy import select

from tests.faults.sim.world import World
from tunesmith.api.jobs.v1 import events_pb2, jobs_pb2
from tunesmith.api.nodes.v1 import nodes_pb2
from tunesmith_jobs import machine
from tunesmith_jobs.tables import OUTBOX, AttemptRow, NodeRow


class Laws:
    """Holds a world to them; remembers what it saw before."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[str, jobs_pb2.Job] = {}

    def now(self) -> None:
        """Checks the present state."""
        jobs = self._world.jobs()
        for name in self._world.accepted.values():
            assert name in jobs, f"{name} was accepted and is gone"
        for name, job in jobs.items():
            self._check_progress(job, self._seen.get(name))
        self._check_attempts(jobs)
        self._seen = jobs

    def _check_progress(self, job: jobs_pb2.Job, before: jobs_pb2.Job | None) -> None:
        if before is not None:
            assert job.revision >= before.revision, f"{job.name} went back in revisions"
            assert job.epoch >= before.epoch, f"{job.name} went back in epochs"
            if before.state in machine.TERMINAL:
                assert job.state == before.state, f"{job.name} left {before.state} for {job.state}"
        if job.state == machine.SUCCEEDED:
            assert self._world.registry.verified.get(job.name) == job.model_version, "unverified success"

    def _check_attempts(self, jobs: dict[str, jobs_pb2.Job]) -> None:
        look = self._world.db.look
        attempts = look(lambda s: s.execute(select(AttemptRow)).scalars().all())
        live = {f"projects/default/jobs/{a.job_id}": a for a in attempts if not a.ended}
        assert len(live) == sum(not a.ended for a in attempts), "a job has two attempts in force"
        for name, job in jobs.items():
            assert (job.state in machine.HAS_ATTEMPT) == (name in live), (
                f"{name}: {job.state}, {live.get(name)}"
            )
            if name in live:
                assert live[name].epoch == job.epoch, f"{name}: an old attempt is in force"
        rows = look(lambda s: s.execute(select(NodeRow)).scalars().all())
        for row in rows:
            node = nodes_pb2.Node.FromString(row.body)
            held = sorted(name for name, attempt in live.items() if attempt.node == row.id)
            assert len(held) <= node.capacity.slots, f"{row.id} has {held}"
            assert sorted(node.jobs) == held, f"{row.id} says {list(node.jobs)} and holds {held}"

    def history(self) -> None:
        """Checks everything that was ever said, once all is quiet."""
        query = select(OUTBOX.c.event_id, OUTBOX.c.subject, OUTBOX.c.payload, OUTBOX.c.published_seq)
        rows = self._world.db.look(lambda s: s.execute(query.order_by(OUTBOX.c.event_id)).all())
        unsent = [row.event_id for row in rows if row.event_id not in self._world.bus.published]
        assert not unsent, f"{len(unsent)} events were never sent"
        states: dict[str, int] = defaultdict(lambda: machine.VALIDATING)
        ends: Counter[str] = Counter()
        revision = 0
        for row in rows:
            if ".job." not in row.subject or ".evt." not in row.subject:
                continue
            event = events_pb2.JobEvent.FromString(row.payload)
            assert event.revision >= revision, "events are not in the order of revisions"
            revision = event.revision
            if event.WhichOneof("event") == "state_changed":
                moved = event.state_changed
                assert moved.from_state == states[event.job], f"{event.job} jumped to {moved.from_state}"
                assert moved.to_state in machine.TRANSITIONS[moved.from_state]
                states[event.job] = moved.to_state
                ends[event.job] += moved.to_state in machine.TERMINAL
        assert all(number == 1 for number in ends.values() if number), "a job ended twice"
        self._check_starts()

    def _check_starts(self) -> None:
        starts = Counter(start for node in self._world.nodes for start in node.begun)
        twice = [start for start, number in starts.items() if number > 1]
        assert not twice, f"started twice: {twice}"
