"""The run.

One invariant carries everything: from one commit to the next is a pure function of (state, spec, step). So a
kill at any instant is repaired by replay from the last checkpoint, to the same bits.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping

import torch

from tunesmith_trainer.checkpoint import Progress
from tunesmith_trainer.control import Control, StopWanted
from tunesmith_trainer.data import Batch
from tunesmith_trainer.evaluate import held_out_loss
from tunesmith_trainer.export import export
from tunesmith_trainer.failure import FailureClass, TrainerError
from tunesmith_trainer.phase import UNINTERRUPTIBLE, Phase
from tunesmith_trainer.report import StatusFile, span
from tunesmith_trainer.run import Precision
from tunesmith_trainer.sample import answer
from tunesmith_trainer.schedule import learning_rate
from tunesmith_trainer.seeds import Domain, seed_torch
from tunesmith_trainer.session import Session

_TRAIN_KEYS = (
    "train/loss",
    "train/learning_rate",
    "train/grad_norm",
    "train/tokens_per_second",
    "train/epoch",
    "train/num_tokens",
)
_EVAL_KEYS = ("eval/loss",)


class Loop:
    """Trains a session from where its newest checkpoint stands to the end."""

    def __init__(self, session: Session, control: Control, status: StatusFile) -> None:
        self.session = session
        self._control = control
        self._status = status
        self._training = session.run.spec.training
        self._bfloat16 = self._training.precision is Precision.BFLOAT16
        self._resumed = False
        self._window_start = time.monotonic()
        self._window_tokens = 0
        self._tokens_per_second: float | None = None
        self._seconds_per_step: float | None = None
        self.phase = Phase.INIT
        self.progress = Progress()

    def run(self) -> None:
        """The whole attempt. Raises StopWanted when it is to end early; `stop` then saves it."""
        course = self.session.course
        self._enter(Phase.INIT)
        self._answer_prompts("before")  # the base model's answers, so before any checkpoint is loaded
        self.resume()
        self._evaluate_if_due()  # one that the last attempt did not finish
        while self.progress.step < course.total_steps:
            if course.starts_epoch(self.progress.step):
                self._enter(Phase.TRAIN_START_EPOCH)
            self.train_step()
            if ends_epoch := course.starts_epoch(self.progress.step):
                self._enter(Phase.SCHEDULER_EPOCH_STEP)
            self._evaluate_if_due()
            if ends_epoch:
                self._enter(Phase.EPOCH_END)
            self._save_if_due()
        self._enter(Phase.TRAINING_COMPLETE)
        self._save()
        self._answer_prompts("after")
        self.session.checkpoints.wait()
        with span(self.session.events, "export"):
            export(self.session, self.progress)

    def resume(self) -> None:
        """Go to the newest checkpoint, if there is one. The cost does not depend on its step."""
        self._resumed = True
        given = self.session.run.checkpoint
        found = self.session.checkpoints.newest(given.path if given else None, given.digest if given else "")
        if found is not None:
            self.progress, weights, moments = found
            self.session.state.restore(weights, moments)
        self.session.model.module.train()

    def stop(self) -> None:
        """Write a checkpoint of the last finished step; what was computed since is dropped."""
        if not self._resumed:
            self.resume()
        self._save()
        self.session.checkpoints.wait()

    def train_step(self) -> None:
        """One optimizer step: the mean loss over all label tokens of its micro-batches."""
        session, step, training = self.session, self.progress.step, self._training
        began = time.monotonic()
        micro_batches = session.course.micro_batches(step)
        first = session.course.first_micro(step)
        # Known before the first backward pass, so that every gradient is scaled once and by the same number.
        weight = sum(session.examples[i].weight for batch in micro_batches for i in batch)
        losses = []
        num_tokens = 0
        for micro, indices in enumerate(micro_batches, first):
            self._enter(Phase.TRAIN_BATCH_LOAD)
            batch = session.recipe.collate([session.examples[i] for i in indices]).to(session.model.device)
            num_tokens += batch.num_tokens
            self._enter(Phase.TRAIN_BATCH_FORWARD)
            seed_torch(training.seed, Domain.FORWARD, micro)
            loss = self._loss(batch)
            self._enter(Phase.TRAIN_BATCH_BACKWARD)
            (loss / weight).backward()
            losses.append(loss.detach())
        self._enter(Phase.TRAIN_BATCH_OPTIM_STEP)
        # An infinite limit measures the norm without clipping.
        norm = torch.nn.utils.clip_grad_norm_(session.parameters, training.max_grad_norm or math.inf)
        rate = learning_rate(training, session.course.total_steps, step)
        for group in session.optimizer.param_groups:
            group["lr"] = rate
        session.optimizer.step()
        session.optimizer.zero_grad()
        self._enter(Phase.SCHEDULER_BATCH_STEP)
        # The only wait for the device in a step.
        *sums, grad_norm = torch.stack([*losses, norm]).tolist()
        self._commit(sum(sums), weight, grad_norm, num_tokens, micro_batches)
        self._enter(Phase.TRAIN_BATCH_END)
        self._report(rate, began)

    def _loss(self, batch: Batch) -> torch.Tensor:
        session = self.session
        if not self._bfloat16:
            return session.recipe.loss(session.scorer, batch)[0]
        with session.model.autocast():
            return session.recipe.loss(session.scorer, batch)[0]

    def _commit(
        self, loss_sum: float, weight: int, grad_norm: float, num_tokens: int, micro_batches: list[list[int]]
    ) -> None:
        """Count the step as done; from here on it is part of the state."""
        progress = self.progress
        loss = loss_sum / weight
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainerError(
                FailureClass.NAN_LOSS,
                "LOSS_NOT_FINITE",
                f"at step {progress.step + 1} the loss is {loss} and the gradient norm {grad_norm}",
                "lower training.learning_rate, add warmup_steps or set max_grad_norm to 1",
            )
        progress.step += 1
        progress.micro_step += len(micro_batches)
        progress.samples += sum(map(len, micro_batches))
        progress.tokens += num_tokens
        progress.loss_sum += loss_sum
        progress.loss_weight += weight
        progress.grad_norm = grad_norm
        progress.loss = loss
        if progress.first_loss is None:
            progress.first_loss = loss
        self._window_tokens += num_tokens

    def _report(self, rate: float, began: float) -> None:
        progress, now = self.progress, time.monotonic()
        if self._seconds_per_step is None:
            seconds = now - began
            self.session.events.event(
                "span",
                name="first_step",
                start=time.time() - seconds,
                end=time.time(),
                attributes={"step": progress.step},
            )
            self._seconds_per_step = seconds
        self._seconds_per_step += 0.1 * (now - began - self._seconds_per_step)
        last = progress.step == self.session.course.total_steps
        if progress.step % self._training.log_every_steps == 0 or last:
            self._record(rate, now)

    def _record(self, rate: float, now: float) -> None:
        """Report the steps since the last record: their mean loss a label token, the newest of the rest."""
        progress = self.progress
        assert progress.grad_norm is not None
        self._tokens_per_second = self._window_tokens / max(now - self._window_start, 1e-9)
        self._window_start, self._window_tokens = now, 0
        loss = progress.loss_sum / progress.loss_weight
        progress.loss_sum, progress.loss_weight = 0.0, 0
        epoch = self.session.course.epoch_at(progress.step)
        self.session.metrics.write(
            progress.step,
            _TRAIN_KEYS,
            (loss, rate, progress.grad_norm, self._tokens_per_second, epoch, progress.tokens),
        )

    def _evaluate_if_due(self) -> None:
        progress, every = self.progress, self._training.eval_every_steps
        last = progress.step == self.session.course.total_steps
        if not every or progress.evaluated_step == progress.step or not (progress.step % every == 0 or last):
            return
        session = self.session
        with span(session.events, "evaluate", step=progress.step):
            loss = held_out_loss(
                session.model,
                session.scorer,
                session.recipe,
                session.held_out,
                self._training.micro_batch_size,
                self._enter,
            )
        session.metrics.write(progress.step, _EVAL_KEYS, (loss,))
        progress.eval_loss = loss
        progress.best_eval_loss = min(loss, progress.best_eval_loss or loss)
        progress.evaluated_step = progress.step
        self._window_start, self._window_tokens = time.monotonic(), 0

    def _save_if_due(self) -> None:
        every = self._training.checkpoint_every_steps
        self.session.checkpoints.check()
        if self._control.checkpoint or (every and self.progress.step % every == 0):
            self._control.checkpoint = False
            self._save()

    def _save(self) -> None:
        epoch = self.session.course.epoch_at(self.progress.step)
        self.session.checkpoints.save(self.session.state, self.progress, epoch)

    def _answer_prompts(self, when: str) -> None:
        run = self.session.run
        for prompt in run.spec.sample_prompts:
            if when == "before" and prompt in run.answered:
                continue
            self._enter(self.phase)
            with span(self.session.events, "sample", when=when):
                text = answer(self.session.model, prompt)
            self.session.events.event("sample", prompt=prompt, when=when, text=text)

    def _enter(self, phase: Phase) -> None:
        """Pass a phase boundary: show it when a status is due, and hear what the agent wants."""
        self.phase = phase
        if time.monotonic() >= self._status.due:
            self.tell()
        self._control.look()
        if self._control.stop and phase not in UNINTERRUPTIBLE:
            raise StopWanted

    def tell(self, result: Mapping[str, str] | None = None) -> None:
        """Write the status, with the attempt's `result` if it has ended, and a line of the log."""
        progress, total = self.progress, self.session.course.total_steps
        figures = (progress.loss or 0.0, progress.grad_norm or 0.0, self._tokens_per_second or 0.0)
        line = "loss {:.5g} grad_norm {:.4g} tokens/s {:.0f}".format(*figures)
        sys.stdout.write(f"{self.phase} step {progress.step}/{total} {line}\n")
        if result is None:
            self._status.write(self._fields())
        else:
            self._status.finish(self._fields(), result)

    def _fields(self) -> dict[str, object]:
        """What status.json says of the run."""
        progress, total = self.progress, self.session.course.total_steps
        pace = self._seconds_per_step
        return {
            "phase": self.phase,
            "step": progress.step,
            "total_steps": total,
            "epoch": self.session.course.epoch_at(progress.step),
            "loss": progress.loss,
            "first_loss": progress.first_loss,
            "eval_loss": progress.eval_loss,
            "tokens_per_second": self._tokens_per_second,
            "eta_seconds": None if pace is None else pace * (total - progress.step),
        }
