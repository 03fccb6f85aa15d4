"""The stories Hypothesis tells: users, faults and the passing of time in any order, and peace at the end."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.faults.sim.laws import Laws
from tests.faults.sim.world import NUM_NODES, USER, World, spec
from tunesmith.api.jobs.v1 import jobs_pb2, verbs_pb2
from tunesmith.errors import FailedPrecondition
from tunesmith_jobs import machine

_PEACE_SECONDS = 600
_QUIET_SECONDS = 6  # the relay looks every five whether the bus lost what it was given
_LOOK_SECONDS = 2
_nodes = st.integers(0, NUM_NODES - 1)
_picks = st.integers(0, 2**16)


class Story(RuleBasedStateMachine):
    """Any order of these rules must leave the laws in force, and every job must end once peace comes."""

    @initialize(seed=st.integers(0, 2**32), picks=st.lists(_picks, min_size=1, max_size=3))
    def begin(self, seed: int, picks: list[int]) -> None:
        self.world = World(seed)
        self.laws = Laws(self.world)
        for pick in picks:
            self.submit(pick)

    @rule(pick=_picks)
    def submit(self, pick: int) -> None:
        self.world.submit(f"r{len(self.world.asked)}", spec(pick))

    @precondition(lambda self: self.world.asked)
    @rule(pick=_picks)
    def repeat_a_submission(self, pick: int) -> None:
        request_id = sorted(self.world.asked)[pick % len(self.world.asked)]
        self.world.submit(request_id, self.world.asked[request_id].spec)

    @precondition(lambda self: self.world.accepted)
    @rule(pick=_picks, verb=st.sampled_from(["cancel", "kill", "pause", "latest", "resume"]))
    def ask(self, pick: int, verb: str) -> None:
        name = sorted(self.world.accepted.values())[pick % len(self.world.accepted)]
        self._ask(name, verb)

    def _ask(self, name: str, verb: str) -> None:
        mode = jobs_pb2.CANCEL_MODE_NOW if verb == "kill" else jobs_pb2.CANCEL_MODE_GRACEFUL
        rest = verbs_pb2.PAUSE_MODE_LATEST if verb == "latest" else verbs_pb2.PAUSE_MODE_SAVE
        cancel = jobs_pb2.CancelJobRequest(name=name, mode=mode)
        pause = verbs_pb2.PauseJobRequest(name=name, mode=rest)
        resume = verbs_pb2.ResumeJobRequest(name=name)
        try:
            if verb in ("cancel", "kill"):
                self.world.call(lambda service: service.verbs.cancel(cancel, USER))
            elif verb == "resume":
                self.world.call(lambda service: service.verbs.resume(resume, USER))
            else:
                self.world.call(lambda service: service.verbs.pause(pause, USER))
        except FailedPrecondition:
            pass  # refused with a reason: the job is in no state for it

    @rule(seconds=st.floats(0.1, 15))
    def wait(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(share=st.sampled_from([0.0, 0.1, 0.4]))
    def trouble_the_bus(self, share: float) -> None:
        self.world.bus.trouble = share

    @rule(share=st.sampled_from([0.0, 0.1, 0.4]))
    def trouble_the_database(self, share: float) -> None:
        self.world.db.trouble = share

    @rule(seconds=st.floats(0, 20))
    def cut_the_bus(self, seconds: float) -> None:
        self.world.bus.cut()
        self.world.run(seconds)
        self.world.bus.heal()

    @rule()
    def wipe_the_bus(self) -> None:
        self.world.bus.wipe()

    @rule(seconds=st.floats(0, 20))
    def kill_the_service(self, seconds: float) -> None:
        self.world.do(self.world.kill_service)
        self.world.run(seconds)
        self.world.do(self.world.start_service)

    @rule(hours=st.sampled_from([-3.0, 3.0]))
    def jump_the_clock(self, hours: float) -> None:
        self.world.clock.jump(hours)

    @rule(node=_nodes, with_disk=st.booleans())
    def kill_a_node(self, node: int, with_disk: bool) -> None:
        self.world.nodes[node].die(with_disk)

    @rule(node=_nodes)
    def start_a_node(self, node: int) -> None:
        self._start(node)

    def _start(self, node: int) -> None:
        async def start() -> None:
            self.world.nodes[node].start()

        self.world.do(start)

    @rule(node=_nodes, partitioned=st.booleans())
    def partition_a_node(self, node: int, partitioned: bool) -> None:
        self.world.nodes[node].partitioned = partitioned

    @invariant()
    def laws_hold(self) -> None:
        if hasattr(self, "laws"):
            self.laws.now()

    def teardown(self) -> None:
        """Peace: every fault ends, whoever rests is woken, and within ten minutes every job must end."""
        if not hasattr(self, "world"):
            return
        try:
            self._make_peace()
            for _ in range(_PEACE_SECONDS // _LOOK_SECONDS):
                for job in self.world.unfinished():
                    if job.state in (machine.PAUSED, machine.PAUSING):
                        self._ask(job.name, "resume")
                if not self.world.unfinished():
                    break
                self.world.run(_LOOK_SECONDS)
                self.laws.now()
            left = [f"{job.name} in {job.state}" for job in self.world.unfinished()]
            assert not left, f"not ended after {_PEACE_SECONDS} s of peace: {left}"
            self.world.run(_QUIET_SECONDS)
            self.laws.now()
            self.laws.history()
        finally:
            self.world.close()

    def _make_peace(self) -> None:
        self.world.bus.trouble = self.world.db.trouble = 0.0
        self.world.bus.heal()
        self.world.do(self.world.start_service)
        for number, node in enumerate(self.world.nodes):
            node.partitioned = False
            self._start(number)
