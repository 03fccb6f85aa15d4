"""The clients: they submit, repeat what was not answered, cancel some, and write down what they were told."""

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.faults.history import History
from tests.faults.site import Site
from tunesmith import Client
from tunesmith.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
)

T = TypeVar("T")
_POLL_SECONDS = 0.25
_CANCELLED_SHARE = 0.15
_REPEATED_SHARE = 0.3
# What an outage may answer; anything else is a promise broken or a bug of ours.
_OUTAGE = (Unavailable, DeadlineExceeded, ResourceExhausted)


@dataclass(frozen=True)
class Shape:
    """One spec of which several jobs are made; they must all end with the same weights."""

    name: str
    training: Mapping[str, Any]
    adapter: Mapping[str, Any] = field(default_factory=lambda: {"lora": {"r": 4, "dropout": 0.1}})

    @property
    def steps(self) -> int:
        """How many steps it takes."""
        return int(self.training["max_steps"])

    def spec(self, experiment: str) -> dict[str, Any]:
        """The job file. Retries are without end: here every failure is our own doing."""
        return {
            "experiment": experiment,
            "base_model": "tiny",
            "dataset": "sums",
            "adapter": dict(self.adapter),
            "training": {"num_threads": 1, "learning_rate": 1e-2, **self.training},
            "retry": {"max_infra_retries": 1000},
        }


def shapes(steps: int) -> list[Shape]:
    """The specs: dropout and accumulation; noise, evaluation and sparse logging; full weights, plain."""
    return [
        Shape("lora", {"max_steps": steps, "seed": 3, "checkpoint_every_steps": 25}),
        Shape(
            "accumulating",
            {
                "max_steps": steps // 2,
                "seed": 5,
                "gradient_accumulation_steps": 2,
                "eval_every_steps": 40,
                "eval_fraction": 0.2,
                "checkpoint_every_steps": 20,
            },
        ),
        Shape("full", {"max_steps": steps, "seed": 7, "checkpoint_every_steps": 40}, {"full": {}}),
    ]


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
        shape = self._rng.choice(self._shapes)
        cancelled = self._rng.random() < _CANCELLED_SHARE
        repeated = self._rng.random() < _REPEATED_SHARE
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
        stop_at = self._rng.randrange(shape.steps) if cancelled else None
        self._follow(client, job.name, stop_at)

    def _follow(self, client: Client, name: str, stop_at: int | None) -> None:
        """Waits for the job's end. What was terminal once must stay so; a revision must never go back."""
        revision = 0
        while not self.give_up.is_set():
            job = self._insist(lambda: client.jobs.get(name))
            if job is None:
                return
            if job.proto.revision < revision:
                self.problems.append(f"{name} went back from revision {revision} to {job.proto.revision}")
            revision = job.proto.revision
            if job.terminal:
                self._history.add("terminal_seen", job=name, state=job.state)
                return
            if stop_at is not None and job.proto.progress.step >= stop_at:
                self._cancel(job)
                stop_at = None
            self.give_up.wait(_POLL_SECONDS)

    def _cancel(self, job: Any) -> None:
        now = self._rng.random() < 0.5
        try:
            self._insist(lambda: job.cancel(now=now))
        except FailedPrecondition as error:
            if error.reason != "JOB_TERMINAL":
                raise
            return  # it had ended, or an unanswered call of ours had been heard
        self._history.add("cancel_acked", job=job.name)

    def _insist(self, call: Callable[[], T]) -> T | None:
        """Repeats a call until it is answered; None when the campaign is given up."""
        while not self.give_up.is_set():
            try:
                return call()
            except _OUTAGE:
                self.give_up.wait(_POLL_SECONDS)
        return None
