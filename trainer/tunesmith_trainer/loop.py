"""The run.

One invariant carries everything: from one commit to the next is a pure function of (state, spec, step). So a
kill at any instant is repaired by replay from the last snapshot or checkpoint, to the same bits.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence

import torch

from tunesmith_trainer import resume
from tunesmith_trainer.answers import LOSS
from tunesmith_trainer.control import Control, StopWanted
from tunesmith_trainer.data import Batch, Micro
from tunesmith_trainer.evaluate import held_out_loss
from tunesmith_trainer.export import export
from tunesmith_trainer.failure import FailureClass, TrainerError
from tunesmith_trainer.gauge import Gauge
from tunesmith_trainer.gradient import Gradients
from tunesmith_trainer.phase import UNINTERRUPTIBLE, Phase
from tunesmith_trainer.report import StatusFile, span
from tunesmith_trainer.run import NanPolicy, Precision, SnapshotMode
from tunesmith_trainer.sample import answer
from tunesmith_trainer.schedule import learning_rate
from tunesmith_trainer.session import Session
from tunesmith_trainer.state import PARTIAL, Progress, Tensors, group
from tunesmith_trainer.wishes import Wishes

_TRAIN_KEYS = (
    "train/loss",
    "train/learning_rate",
    "train/grad_norm",
    "train/tokens_per_second",
    "train/epoch",
    "train/num_tokens",
)


class Loop:
    """Trains a session from where its newest state stands to the end."""

    def __init__(self, session: Session, control: Control, status: StatusFile) -> None:
        self.session = session
        self._wishes = Wishes(control, session.group)
        self._status = status
        self._training = session.run.spec.training
        self._bfloat16 = self._training.precision is Precision.BFLOAT16
        self._micro_mode = self._training.snapshots is SnapshotMode.MICRO_STEP
        self._gauge = Gauge(session.work, session.peak)
        self._gradients = Gradients(session.parameters, self._training, session.group)
        self._resumed: tuple[int, str] | None = None
        self.phase = Phase.INIT
        self.progress = Progress()

    def run(self) -> None:
        """The whole attempt. Raises StopWanted when it is to end early; `stop` then saves it."""
        course = self.session.course
        self._enter(Phase.INIT)
        self._answer_prompts("before")  # the base model's answers, so before any state is loaded
        self.resume()
        self._evaluate_if_due()  # one that the last attempt did not finish
        while self.progress.step < course.total_steps and not self.progress.stopped_early:
            if course.starts_epoch(self.progress.step):
                self._enter(Phase.TRAIN_START_EPOCH)
            self.train_step()
            if ends_epoch := course.starts_epoch(self.progress.step):
                self._enter(Phase.SCHEDULER_EPOCH_STEP)
            self._keep()
            self._evaluate_if_due()
            if ends_epoch:
                self._enter(Phase.EPOCH_END)
            self._save_if_due()
        self._enter(Phase.TRAINING_COMPLETE)
        self._finish()

    def train_step(self) -> None:
        """One optimizer step: the mean loss over all label tokens of its micro-batches."""
        session, step, gradients = self.session, self.progress.step, self._gradients
        began = time.monotonic()
        micros = session.course.micro_batches(step)
        # Known before the first backward pass, so that every gradient is scaled once and by the same number.
        sizes = weight, _, _ = session.feed.size(micros)
        gradients.begin(micros)
        while gradients.round < gradients.rounds:
            self._enter(Phase.TRAIN_BATCH_LOAD)
            if (micro := gradients.own()) is not None:
                batch = session.feed.batch(micro)
                self._enter(Phase.TRAIN_BATCH_FORWARD)
                session.feed.seed(micro.index)
                loss = self._loss(batch)
                self._enter(Phase.TRAIN_BATCH_BACKWARD)
                (loss / weight).backward()
                gradients.add(loss)
            gradients.round += 1
            if self._micro_mode:
                self._keep_within()
        self._enter(Phase.TRAIN_BATCH_OPTIM_STEP)
        losses, wish = gradients.reduce(self._wishes.own())
        # An infinite limit measures the norm without clipping.
        norm = torch.nn.utils.clip_grad_norm_(session.parameters, self._training.max_grad_norm or math.inf)
        rate = learning_rate(self._training, session.course.total_steps, step)
        # The only wait for the device in a step; with NAN_POLICY_SKIP it must come before the update.
        figures = torch.stack([*losses, norm])
        if self._training.nan_policy is NanPolicy.STOP or bool(figures.isfinite().all()):
            for options in session.optimizer.param_groups:
                options["lr"] = rate
            session.optimizer.step()
        session.optimizer.zero_grad()
        self._enter(Phase.SCHEDULER_BATCH_STEP)
        *sums, grad_norm = figures.tolist()
        self._commit(sums, grad_norm, micros, sizes)
        self._wishes.agree(wish)
        self._enter(Phase.TRAIN_BATCH_END)
        self._report(rate, grad_norm, time.monotonic() - began, sizes)

    def _loss(self, batch: Batch) -> torch.Tensor:
        session = self.session
        if not self._bfloat16:
            return session.recipe.loss(session.scorer, batch)[0]
        with session.model.autocast():
            return session.recipe.loss(session.scorer, batch)[0]

    def _commit(
        self, sums: Sequence[float], grad_norm: float, micros: Sequence[Micro], sizes: tuple[int, int, int]
    ) -> None:
        """Count the step as done; from here on it is part of the state."""
        progress = self.progress
        weight, num_tokens, num_samples = sizes
        finite = all(map(math.isfinite, (*sums, grad_norm)))
        loss_sum = math.fsum(sums) if finite else sum(sums)
        if not finite:
            self._count_skipped(loss_sum / weight, grad_norm)
        progress.step += 1
        progress.partial = []
        progress.micro_step += len(micros)
        progress.samples += num_samples
        progress.tokens += num_tokens
        if not finite:
            return
        progress.loss_sum += loss_sum
        progress.loss_weight += weight
        progress.grad_norm = grad_norm
        progress.loss = loss_sum / weight
        if progress.first_loss is None:
            progress.first_loss = progress.loss

    def _count_skipped(self, loss: float, grad_norm: float) -> None:
        progress, training = self.progress, self._training
        told = f"at step {progress.step + 1} the loss is {loss} and the gradient norm {grad_norm}"
        if training.nan_policy is NanPolicy.SKIP:
            if progress.skipped_steps < training.max_skipped_steps:
                progress.skipped_steps += 1
                return
            told += f"; {training.max_skipped_steps} steps were skipped before"
        raise TrainerError(
            FailureClass.NAN_LOSS,
            "LOSS_NOT_FINITE",
            told,
            "lower training.learning_rate, add warmup_steps or set max_grad_norm to 1",
        )

    def _report(self, rate: float, grad_norm: float, seconds: float, sizes: tuple[int, int, int]) -> None:
        progress = self.progress
        if self._gauge.step(seconds, sizes):
            now, attributes = time.time(), {"step": progress.step}
            self.session.events.event(
                "span", name="first_step", start=now - seconds, end=now, attributes=attributes
            )
        last = progress.step == self.session.course.total_steps
        if progress.step % self._training.log_every_steps == 0 or last:
            self._record(rate, grad_norm)

    def _record(self, rate: float, grad_norm: float) -> None:
        """Report the steps since the last record: their mean loss a label token, the newest of the rest."""
        progress, session = self.progress, self.session
        # With every step since skipped there is no loss to tell.
        loss = progress.loss_sum / progress.loss_weight if progress.loss_weight else math.nan
        progress.loss_sum, progress.loss_weight = 0.0, 0
        epoch = session.course.epoch_at(progress.step)
        if session.metrics is not None:
            values = (loss, rate, grad_norm, self._gauge.read(), epoch, progress.tokens)
            session.metrics.write(progress.step, _TRAIN_KEYS, values)

    def _evaluate_if_due(self) -> None:
        progress, every = self.progress, self._training.eval_every_steps
        last = progress.step == self.session.course.total_steps
        if not every or progress.evaluated_step == progress.step or not (progress.step % every == 0 or last):
            return
        session = self.session
        with span(session.events, "evaluate", step=progress.step):
            loss = held_out_loss(session, progress, self._enter, self._wishes.exchange)
            answers = session.answers
            scores = answers.judge(self._enter, self._wishes.exchange) if answers is not None else {}
        if session.metrics is not None:
            keys = (LOSS, *(f"eval/{name}" for name in scores))
            session.metrics.write(progress.step, keys, (loss, *scores.values()))
        judged = answers.figure(loss, scores) if answers is not None else loss
        progress.count_evaluation(loss, scores, judged, self._training.early_stopping_min_delta)
        progress.stopped_early = self._out_of_patience()
        self._gauge.restart()

    def _out_of_patience(self) -> bool:
        patience = self._training.early_stopping_patience
        return bool(patience) and self.progress.num_worse >= patience

    def _go_by_metric(self) -> None:
        answers = self.session.answers
        metric = answers.best if answers is not None else LOSS
        self.progress.go_by(metric, is_loss=metric == LOSS)

    def resume(self) -> None:
        """Go to the newest state, if there is one. The cost does not depend on its step."""
        session, leader = self.session, self.session.group.leads
        found = resume.newest(session.run, session.identity, session.events) if leader else None
        told = session.group.tell(None if found is None else resume.outline(found))
        if told is not None:
            tensors = resume.share(session.group, told, found, session.model.device)
            self.progress = Progress.from_json(told["progress"])
            session.state.restore(tensors)
            if self.progress.partial and not self._gradients.restore(
                self.progress.partial, group(tensors, PARTIAL)
            ):
                self.progress.partial = []
        self._go_by_metric()
        self.progress.stopped_early &= self._out_of_patience()  # a fork may have been given more
        self._resumed = (self.progress.step, told["origin"] if told else "")
        if session.keeper is not None:
            session.keeper.resumed(found)
        session.model.module.train()
        self._gauge.begin()
        self._status.due = 0.0  # where it begins is told at the next boundary
        if not session.group.alone:
            self._wishes.agree(session.group.tell(self._wishes.own()))

    def stop(self) -> None:
        """Write a checkpoint of what is finished, the micro-batches of an unfinished step with it."""
        if self._resumed is None:
            self.resume()
        tensors = self._tensors()
        if (keeper := self.session.keeper) is not None:
            keeper.save(self.progress, tensors, self._epoch)
            keeper.wait(must=True)

    @property
    def _epoch(self) -> float:
        return self.session.course.epoch_at(self.progress.step)

    def _tensors(self) -> Tensors:
        """The live state. Within a step every rank takes part: what each has of the step belongs to it."""
        tensors = self.session.state.tensors()
        if self._gradients.round == 0:
            self.progress.partial = []
            return tensors
        self.progress.partial, parts = self._gradients.partial()
        return tensors | {f"{PARTIAL}/{name}": item for name, item in parts.items()}

    def _keep(self) -> None:
        """Copy the state of a commit into memory, as often as that may cost."""
        keeper = self.session.keeper
        if keeper is not None and keeper.snapshot_due():
            keeper.snapshot(self.progress, self._tensors())

    def _keep_within(self) -> None:
        """The same after a micro-batch. Rank 0 decides for all, for all take part."""
        keeper, session = self.session.keeper, self.session
        due = keeper is not None and keeper.snapshot_due()
        if not session.group.alone:
            self._wishes.look()
            due, stop = session.group.tell([due, self._wishes.own()])
            self._wishes.agree(stop)
        if due and self._gradients.round < self._gradients.rounds:
            tensors = self._tensors()
            if keeper is not None:
                keeper.snapshot(self.progress, tensors)

    def _save_if_due(self) -> None:
        keeper, step = self.session.keeper, self.progress.step
        if keeper is None:
            return
        every = self._training.checkpoint_every_steps
        due = bool(every) and step % every == 0
        if self._wishes.take_checkpoint() or due or keeper.checkpoint_due() or keeper.is_best(self.progress):
            keeper.save(self.progress, self._tensors(), self._epoch)

    def _finish(self) -> None:
        """The last checkpoint, the answers and the output: rank 0's business."""
        session, progress = self.session, self.progress
        keeper = session.keeper
        if progress.stopped_early and progress.loss_weight:  # it ended between two records
            rate = learning_rate(self._training, session.course.total_steps, progress.step - 1)
            self._record(rate, progress.grad_norm or 0.0)
        if keeper is None:
            return
        keeper.save(progress, self._tensors(), self._epoch)
        self._answer_prompts("after")
        keeper.wait(must=True)
        with span(session.events, "export"):
            export(session, progress)

    def _answer_prompts(self, when: str) -> None:
        run = self.session.run
        if not self.session.group.leads:
            return
        for number, prompt in enumerate(run.spec.sample_prompts):
            if when == "before" and prompt in run.answered:
                continue
            self._enter(self.phase)
            with span(self.session.events, "sample", when=when):
                text = answer(self.session.model, prompt)
            self.session.events.event("sample", prompt=prompt, when=when, text=text)
            if self.session.metrics is not None:
                self.session.metrics.text(self.progress.step, f"sample/{number}", f"{prompt}\n\n{text}")

    def _enter(self, phase: Phase) -> None:
        """Pass a phase boundary: show it when a status is due, and hear what the agent wants."""
        self.phase = phase
        if time.monotonic() >= self._status.due and self.session.group.leads:
            self.tell()
        self._wishes.look()
        if self._wishes.stop and phase not in UNINTERRUPTIBLE:
            raise StopWanted

    def tell(self, result: Mapping[str, str] | None = None) -> None:
        """Write the status, with the attempt's `result` if it has ended, and a line of the log."""
        progress, total = self.progress, self.session.course.total_steps
        figures = (progress.loss or 0.0, progress.grad_norm or 0.0, self._gauge.tokens_per_second or 0.0)
        line = "loss {:.5g} grad_norm {:.4g} tokens/s {:.0f}".format(*figures)
        sys.stdout.write(f"{self.phase} step {progress.step}/{total} {line}\n")
        if result is None:
            self._status.write(self._fields())
        else:
            self._status.finish(self._fields(), result)

    def _fields(self) -> dict[str, object]:
        """What status.json says of the run."""
        progress, total = self.progress, self.session.course.total_steps
        gauge, keeper = self._gauge, self.session.keeper
        pace, resumed = gauge.seconds_per_step, self._resumed or (0, "")
        return {
            "phase": self.phase,
            "step": progress.step,
            "total_steps": total,
            "epoch": self._epoch,
            "loss": progress.loss,
            "first_loss": progress.first_loss,
            "eval_loss": progress.eval_loss,
            "eval_scores": progress.eval_scores,
            **gauge.figures(self.session.model.device),
            "eta_seconds": None if pace is None else pace * (total - progress.step),
            "resumed_step": resumed[0],
            "resumed_from": resumed[1],
            "checkpoint_seconds": keeper.seconds if keeper is not None else 0.0,
            "training_seconds": gauge.training_seconds if self._resumed is not None else 0.0,
            "skipped_steps": progress.skipped_steps,
            "stopped_early": progress.stopped_early,
            "checkpoint_age_seconds": keeper.age_seconds if keeper is not None else None,
        }
