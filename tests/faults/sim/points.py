"""Stories of metric points: what trainers log is stored once, whatever happens on the way."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.faults.sim.shipping import KEYS, World
from tunesmith_metrics import store
from tunesmith_metrics.events import Rank

_PEACE_SECONDS = 120
_JOBS = ("one", "two")
_picks = st.integers(0, 2**16)


class PointStory(RuleBasedStateMachine):
    """Any order of these rules must leave each point stored once, and the spools empty once peace comes."""

    @initialize(seed=st.integers(0, 2**32), records=st.integers(1, 60))
    def begin(self, seed: int, records: int) -> None:
        self.world = World(seed)
        self._marks: dict[Rank, int] = {}
        for job_id in _JOBS:
            self.world.begin(job_id, 0).write(records, torn=False)

    @rule(pick=_picks, records=st.integers(1, 60), torn=st.booleans())
    def log(self, pick: int, records: int, torn: bool) -> None:
        # The newest attempt alone may write: the platform fences the others.
        job_id = _JOBS[pick % 2]
        newest = [attempt for attempt in self.world.attempts if attempt.job_id == job_id][-1]
        newest.write(records, torn)

    @rule(pick=_picks, back=st.integers(0, 40), records=st.integers(1, 40))
    def begin_an_attempt(self, pick: int, back: int, records: int) -> None:
        self.world.begin(_JOBS[pick % 2], back).write(records, torn=False)

    @rule(pick=_picks)
    def kill_an_agent(self, pick: int) -> None:
        self.world.attempts[pick % len(self.world.attempts)].kill_agent()

    @rule(pick=_picks)
    def start_an_agent(self, pick: int) -> None:
        self.world.attempts[pick % len(self.world.attempts)].start_agent()

    @rule(seconds=st.floats(0.1, 8))
    def wait(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(share=st.sampled_from([0.0, 0.1, 0.4]))
    def trouble_the_bus(self, share: float) -> None:
        self.world.pipe.trouble = share

    @rule(share=st.sampled_from([0.0, 0.1, 0.4]))
    def trouble_the_database(self, share: float) -> None:
        self.world.db.trouble = share

    @rule(seconds=st.floats(0, 10))
    def cut_the_bus(self, seconds: float) -> None:
        self.world.pipe.connected = False
        self.world.run(seconds)
        self.world.pipe.connected = True

    @rule()
    def wipe_the_bus(self) -> None:
        self.world.pipe.wipe()

    @rule(seconds=st.floats(0, 10))
    def kill_the_service(self, seconds: float) -> None:
        self.world.do(self.world.kill_service)
        self.world.run(seconds)
        self.world.do(self.world.start_service)

    @rule(full=st.booleans())
    def fill_the_project(self, full: bool) -> None:
        self.world.do(lambda: self.world.fill(full))

    @rule()
    def compact(self) -> None:
        self.world.compact()

    @invariant()
    def laws_hold(self) -> None:
        if not hasattr(self, "world"):
            return
        for attempt in self.world.attempts:
            mark = self._mark(attempt.who)
            assert self._marks.get(attempt.who, 0) <= mark, f"the watermark of {attempt.who} went back"
            assert mark <= len(attempt.steps), f"{attempt.who} is stored up to {mark}, and wrote less"
            self._marks[attempt.who] = mark
        for job_id in _JOBS:
            logged = self._logged(job_id)
            for step, loss in self._stored(job_id).items():
                assert loss in logged[step], f"{job_id}: nobody logged {loss} at step {step}"

    def teardown(self) -> None:
        """Peace: within two minutes all is stored and no spool holds anything back."""
        if not hasattr(self, "world"):
            return
        try:
            self._make_peace()
            for _ in range(_PEACE_SECONDS):
                if all(
                    self._stored_whole(attempt.who, len(attempt.steps)) for attempt in self.world.attempts
                ):
                    break
                self.world.run(1)
            self.world.run(1)
            self.laws_hold()
            self._check_end()
            self.world.compact()
            self.world.run(5)
            self._check_end()
        finally:
            self.world.close()

    def _make_peace(self) -> None:
        self.world.pipe.trouble = self.world.db.trouble = 0.0
        self.world.pipe.connected = True
        self.world.do(self.world.start_service)
        self.world.do(lambda: self.world.fill(False))
        for attempt in self.world.attempts:
            attempt.start_agent()

    def _check_end(self) -> None:
        refused = [error for durable in self.world.pipe.durables.values() for error in durable.refused]
        assert not refused, f"refused: {refused}"
        for attempt in self.world.attempts:
            mark = self._mark(attempt.who)
            assert mark == len(attempt.steps), f"{attempt.who}: {mark} of {len(attempt.steps)} stored"
            text = self.world.mark(attempt.who).log_offset
            assert text == attempt.log.stat().st_size, f"{attempt.who}: its log is stored up to {text}"
        for job_id in _JOBS:
            newest = {step: losses[-1] for step, losses in self._logged(job_id).items()}
            assert self._stored(job_id) == newest, f"{job_id}: not what was logged"
            counted = self.world.counted(job_id)
            assert counted == dict.fromkeys(KEYS, len(newest)), f"{job_id}: summed up as {counted}"

    def _mark(self, who: Rank) -> int:
        return self.world.mark(who).metrics_seq

    def _stored_whole(self, who: Rank, num_records: int) -> bool:
        return self._mark(who) == num_records

    def _stored(self, job_id: str) -> dict[int, float]:
        curves = self.world.db.look(lambda session: store.curves(session, job_id))
        if KEYS[0] not in curves:
            return {}
        curve = curves[KEYS[0]]
        assert len(set(curve.steps)) == len(curve.steps), f"{job_id}: a step came twice"
        return dict(zip(map(int, curve.steps), map(float, curve.values), strict=True))

    def _logged(self, job_id: str) -> dict[int, list[float]]:
        """Every value that was ever logged for a step, the one that counts last."""
        logged: dict[int, list[float]] = {}
        for attempt in self.world.attempts:
            if attempt.job_id == job_id:
                for step, loss in attempt.steps:
                    logged.setdefault(step, []).append(loss)
        return logged
