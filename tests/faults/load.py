"""The clients: they submit, repeat what was not answered, pause, fork, move and cancel, and write down what
they were told."""

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tests.faults.history import History
from tests.faults.shapes import Shape
from tests.faults.site import Site
from tunesmith import Client
from tunesmith.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)

T = TypeVar("T")
_POLL_SECONDS = 0.25
_REPEATED_SHARE = 0.3
_REST_SECONDS = 2.0  # at most, of a paused job
# What a client does to a job of its own, and how often.
_PLANS = {"nothing": 4.0, "cancel": 1.5, "pause": 2.0, "fork": 1.5, "move": 2.0}
# What an outage may answer; anything else is a promise broken or a bug of ours.
_OUTAGE = (Unavailable, DeadlineExceeded, ResourceExhausted)
# What may rightly be said to a wish that came too late, or that had been heard although nobody answered.
_REFUSALS = {
    "cancel": ("JOB_TERMINAL",),
    "pause": ("JOB_TERMINAL", "STATE_CONFLICT", "CHECKPOINT_MISSING"),
    "resume": ("JOB_TERMINAL", "STATE_CONFLICT"),
    "fork": ("CHECKPOINT_MISSING",),
    "move": ("JOB_TERMINAL", "STATE_CONFLICT", "NODE_UNFIT", "NODE_NOT_FOUND"),
}


class Caller:
    """One user. Runs in a thread until told to submit no more, and then waits for its last job."""

    def __init__(self, number: int, seed: int, site: Site, history: History, choice: Sequence[Shape]) -> None:
        self._name = f"client-{number}"
        self._rng = random.Random(f"{seed}:{self._name}")
        self._site, self._history, self._shapes = site, history, choice
        self._seed = seed
        self.enough = threading.Event()
        self.give_up = threading.Event()
        self.problems: list[str] = []
        self._thread = threading.Thread(target=self._guarded, name=self._name, daemon=True)

    def start(self) -> None:
        """Begins to submit."""
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Waits for the end; whether it came."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _guarded(self) -> None:
        try:
            self._run()
        except Exception as error:
            self.problems.append(f"{self._name} got an answer no outage explains: {error!r}")

    def _run(self) -> None:
        number = 0
        with self._site.platform.client() as client:
            while not self.enough.is_set():
                number += 1
                self._one_job(client, f"{self._seed}-{self._name}-{number}")

    def _one_job(self, client: Client, request_id: str) -> None:
        shape = self._rng.choices(self._shapes, [shape.weight for shape in self._shapes])[0]
        plan = self._rng.choices(list(_PLANS), list(_PLANS.values()))[0]
        repeated = self._rng.random() < _REPEATED_SHARE
        at = self._rng.randrange(shape.steps)
        if plan == "move" and not (shape.movable and len(self._site.wires) > 1):
            plan = "pause"
        self._history.add("submit_called", request_id=request_id, shape=shape.name)

        def submit() -> Any:
            return client.jobs.submit(shape.spec("chaos"), request_id=request_id)

        job = self._insist(submit)
        if job is None:
            return
        self._history.add("submit_acked", request_id=request_id, shape=shape.name, job=job.name)
        if repeated:
            again = self._insist(submit)
            if again is not None and again.name != job.name:
                self.problems.append(f"{request_id} made two jobs: {job.name} and {again.name}")
        child = self._follow(client, job.name, shape, plan, at)
        if child is not None:
            self._follow(client, child, shape, "nothing", 0)

    def _follow(self, client: Client, name: str, shape: Shape, plan: str, at: int) -> str | None:
        """Waits for the job's end and carries the plan out on the way; returns the name of a fork.

        What was terminal once must stay so; a revision must never go back.
        """
        revision, child = 0, None
        while not self.give_up.is_set():
            job = self._insist(lambda: client.jobs.get(name))
            if job is None:
                return child
            if job.proto.revision < revision:
                self.problems.append(f"{name} went back from revision {revision} to {job.proto.revision}")
            revision = job.proto.revision
            if job.terminal:
                self._history.add("terminal_seen", job=name, state=job.state)
                return child
            if job.state == "PAUSED":
                self.give_up.wait(self._rng.uniform(0, _REST_SECONDS))
                self._ask("resume", name, job.resume)
            elif plan != "nothing" and job.proto.progress.step >= at:
                done, child = self._act(client, job, shape, plan)
                plan = "nothing" if done else plan
            self.give_up.wait(_POLL_SECONDS)
        return child

    def _act(self, client: Client, job: Any, shape: Shape, plan: str) -> tuple[bool, str | None]:
        """Does what was planned; returns whether it is done with, and the name of a fork."""
        if plan == "fork":
            return self._fork(job, shape)
        if plan == "cancel":
            now = self._rng.random() < 0.5
            self._ask("cancel", job.name, lambda: job.cancel(now=now))
        elif plan == "pause":
            latest = self._rng.random() < 0.5
            self._ask("pause", job.name, lambda: job.pause(latest=latest))
        else:
            attempts = self._insist(job.attempts) or []
            here = list(attempts[0].nodes) if attempts else []
            if job.state != "RUNNING" or not here:
                return False, None
            node = self._rng.choice([node for node in sorted(self._site.wires) if node not in here])
            self._ask("move", job.name, lambda: job.move(node))
        return True, None

    def _fork(self, job: Any, shape: Shape) -> tuple[bool, str | None]:
        """Forks a kept checkpoint from which steps are left to make, once there is one."""
        points = self._insist(job.checkpoints) or []
        steps = sorted(point.step for point in points if 0 < point.step < shape.steps)
        if not steps:
            return False, None
        request_id, step = f"{job.name}-fork", self._rng.choice(steps)
        child = self._ask(
            "fork", job.name, lambda: job.fork(step=step, request_id=request_id), request_id=request_id
        )
        if child is None:
            return True, None
        self._history.add(
            "fork_acked", request_id=request_id, shape=shape.name, job=child.name, parent=job.name, step=step
        )
        return True, child.name

    def _ask(self, wish: str, name: str, call: Callable[[], T], **facts: str) -> T | None:
        """Insists on a wish and notes the answer; None when it was rightly refused."""
        self._history.add(f"{wish}_called", job=name, **facts)
        try:
            answer = self._insist(call)
        except (FailedPrecondition, NotFound) as error:
            if error.reason not in _REFUSALS[wish]:
                raise
            self._history.add("refused", wish=wish, job=name, reason=error.reason)
            return None
        if answer is not None and wish != "fork":
            self._history.add(f"{wish}_acked", job=name)
        return answer

    def _insist(self, call: Callable[[], T]) -> T | None:
        """Repeats a call until it is answered; None when the campaign is given up."""
        while not self.give_up.is_set():
            try:
                return call()
            except _OUTAGE:
                self.give_up.wait(_POLL_SECONDS)
        return None
