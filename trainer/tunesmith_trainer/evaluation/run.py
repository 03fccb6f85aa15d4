"""The evaluation, target by target and batch by batch.

One invariant carries it: what a batch gives is a function of targets, spec and data, and the batches are the
same whatever was judged before. So a kill at any instant costs at most one batch, and the bits stay.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from tunesmith_trainer import environment
from tunesmith_trainer.adapters import Swap
from tunesmith_trainer.chat import ChatFormat
from tunesmith_trainer.control import Control, StopWanted
from tunesmith_trainer.data import rows
from tunesmith_trainer.evaluation import ledger as ledgers
from tunesmith_trainer.evaluation import likelihood, outcome
from tunesmith_trainer.evaluation.generation import Answer, generate
from tunesmith_trainer.evaluation.ledger import Judged, Ledger
from tunesmith_trainer.evaluation.outcome import Means
from tunesmith_trainer.evaluation.plan import ScorerPlan, plan_of
from tunesmith_trainer.evaluation.questions import Question, choose
from tunesmith_trainer.evaluation.sandbox import Sandbox
from tunesmith_trainer.evaluation.scorers import TextScorer, text_scorers
from tunesmith_trainer.evaluation.stage import Stage, steady
from tunesmith_trainer.evaluation.verdict import Aggregate, Metric, Verdict
from tunesmith_trainer.failure import invalid_input
from tunesmith_trainer.model import check_folder
from tunesmith_trainer.phase import Phase
from tunesmith_trainer.report import MetricSpool, Reporter, StatusFile, log, span
from tunesmith_trainer.run import Run, Target

_CHECKPOINT_SECONDS = 30.0
_KEEP_CHECKPOINTS = 1
# A judge is asked over the network: eight rows at once hide its time without storming it.
_ASKED_AT_ONCE = 8
_MOST_CHOICES = 64


class Evaluation:
    """One attempt of an evaluation."""

    def __init__(self, run: Run, events: Reporter, control: Control, status: StatusFile) -> None:
        self.run, self._events, self._control, self._status = run, events, control, status
        self._plan = plan_of(run)
        self._device = environment.choose_device(run.gpus)
        threads = environment.threads_of(self._plan.num_threads, run.local_world_size)
        environment.pin(threads)
        environment.tell(run, self._device, threads)
        with steady((run.base_model, "base model")):
            check_folder(run.base_model.path)
        self._box = Sandbox()
        self._texts = text_scorers(self._plan.scorers, run, self._box)
        self._losses = [plan for plan in self._plan.scorers if plan.kind == "perplexity"]
        self._choices = [plan for plan in self._plan.scorers if plan.kind == "multiple_choice"]
        template = run.prompt_template
        with steady((run.dataset, "dataset"), *([(template, "prompt template")] if template else [])):
            read = rows(run.dataset.path, template.path if template else None)
            self.questions = choose(read, self._plan.max_rows, self._plan.seed)
        self._check_questions()
        self._ledger = Ledger(run, self._identity(), environment.fingerprint(self._device, threads, run))
        self._stage = Stage(run, self._device, torch.bfloat16 if self._plan.bfloat16 else torch.float32)
        self._metrics = MetricSpool(run.folder / "spool")
        self._means = Means(self.metrics, len(run.targets))
        self._judged = {(item.target, item.row): item for item in self._ledger.found}
        self._means.add(self._ledger.found)
        self._resumed = len(self._judged)
        self._began = self._saved = time.monotonic()

    @property
    def metrics(self) -> list[Metric]:
        """What the evaluation gives, in the order of its scorers."""
        texts = iter(self._texts)
        found: list[Metric] = []
        for plan in self._plan.scorers:
            if plan.kind == "perplexity":
                found.append(Metric(plan.name, Aggregate.PERPLEXITY, higher_is_better=False))
            elif plan.kind == "multiple_choice":
                found.append(Metric(plan.name))
            else:
                found.extend(next(texts).metrics)
        return found

    def evaluate(self) -> None:
        """The whole attempt. Raises StopWanted when it is to end early; `save` then keeps what there is."""
        ledgers.drift(self._events, self._ledger)
        self._tell(force=True)
        for index, target in enumerate(self.run.targets):
            if all((index, question.row.line) in self._judged for question in self.questions):
                continue
            with span(self._events, "evaluate", target=target.name):
                self._evaluate(index, target)
        outcome.write(self.run, self.metrics, self.questions, self._judged, self._events)

    def save(self) -> None:
        """Keeps what was judged, so that another attempt goes on behind it, on whatever node."""
        self._ledger.checkpoint(self._events, _KEEP_CHECKPOINTS)
        self._saved = time.monotonic()

    def close(self) -> None:
        """Ends what runs beside."""
        self._box.close()
        self._ledger.close()

    def tell(self, result: dict[str, str] | None = None) -> None:
        """Writes the status, with the attempt's `result` if it has ended."""
        if result is None:
            self._status.write(self._fields())
        else:
            self._status.finish(self._fields(), result)

    def _evaluate(self, index: int, target: Target) -> None:
        swap = self._stage.put_on(target)
        chat = ChatFormat(swap.tokenizer)
        judge = likelihood.Judge(swap, chat, self._max_length(swap))
        prompts = {
            question.row.line: self._prompt(swap, chat, question)
            for question in self.questions
            if question.asks
        }
        for number, batch in enumerate(self._batches(prompts)):
            if all((index, question.row.line) in self._judged for question in batch):
                continue
            self._look()
            answers = self._answers(swap, prompts, batch, number)
            verdicts = self._verdicts(judge, batch, answers)
            self._keep([_judged(index, *item) for item in zip(batch, answers, verdicts, strict=True)])
        judge.close()

    def _keep(self, judged: Sequence[Judged]) -> None:
        """Counts a batch as done; from here on it is part of the state."""
        self._ledger.add(judged)
        self._judged |= {(item.target, item.row): item for item in judged}
        self._means.add(judged)
        keys, values = self._means.read()
        if keys:
            self._metrics.write(len(self._judged), keys, values)
        self._tell()

    def _batches(self, prompts: dict[int, list[int]]) -> Iterator[list[Question]]:
        """All questions by the length of their prompts, so that little is padding."""

        def length(question: Question) -> tuple[int, int]:
            return len(prompts.get(question.row.line, ())), question.row.line

        ordered = sorted(self.questions, key=length)
        for start in range(0, len(ordered), self._plan.batch_size):
            yield ordered[start : start + self._plan.batch_size]

    def _prompt(self, swap: Swap, chat: ChatFormat, question: Question) -> list[int]:
        text = chat.ask(question.row.line, question.prompt)
        tokens = list(swap.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        room = self._max_length(swap) - self._plan.generation.max_new_tokens
        return tokens[-max(1, room) :] or [0]

    def _max_length(self, swap: Swap) -> int:
        context = getattr(swap.causal.config.get_text_config(), "max_position_embeddings", None)
        return min(self._plan.max_length, int(context)) if context else self._plan.max_length

    def _answers(
        self, swap: Swap, prompts: dict[int, list[int]], batch: Sequence[Question], number: int
    ) -> list[Answer]:
        asked = [question for question in batch if question.asks] if self._texts else []
        if not asked:
            return [Answer("", 0)] * len(batch)
        found = generate(
            swap, [prompts[question.row.line] for question in asked], self._plan.generation, number
        )
        by_line = dict(zip((question.row.line for question in asked), found, strict=True))
        return [by_line.get(question.row.line, Answer("", 0)) for question in batch]

    def _verdicts(
        self, judge: likelihood.Judge, batch: Sequence[Question], answers: Sequence[Answer]
    ) -> list[list[Verdict]]:
        found: list[list[Verdict]] = [[] for _ in batch]
        if self._losses:
            for place, item in enumerate(judge.references([question.row for question in batch])):
                found[place] += [outcome.perplexity(plan.name, item) for plan in self._losses]
        for plan in self._choices:
            for place, question in enumerate(batch):
                found[place].append(self._choose(plan, judge, question))
        for scorer in self._texts:
            for place, verdict in self._scored(scorer, batch, answers):
                found[place].append(verdict)
        return found

    def _scored(
        self, scorer: TextScorer, batch: Sequence[Question], answers: Sequence[Answer]
    ) -> Iterator[tuple[int, Verdict]]:
        places = [
            place
            for place, question in enumerate(batch)
            if question.asks and (question.reference is not None or not scorer.needs_reference)
        ]
        if not outcome.is_remote(scorer):  # the sandbox dies with the thread that started it
            yield from ((place, scorer.judge(batch[place], answers[place].text)) for place in places)
            return
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            waiting = [pool.submit(scorer.judge, batch[place], answers[place].text) for place in places]
            for place, verdict in zip(places, waiting, strict=True):
                yield place, verdict.result()
                self._tell()  # a judge may take its time: whoever watches sees that we live

    def _choose(self, plan: ScorerPlan, judge: likelihood.Judge, question: Question) -> Verdict:
        if not question.asks or question.reference is None:
            return Verdict()
        choices = plan.fields.texts("choices") or self._references()
        wanted = question.reference.strip()
        if wanted not in choices:
            return Verdict(notes={plan.name: "the reference is none of the choices"})
        found = judge.choices(question, choices)
        best = min(range(len(choices)), key=lambda at: found[at].loss / found[at].num_tokens)
        return Verdict({plan.name: float(choices[best] == wanted)}, notes={plan.name: choices[best][:200]})

    def _references(self) -> tuple[str, ...]:
        found = sorted({(question.reference or "").strip() for question in self.questions} - {""})
        if not 2 <= len(found) <= _MOST_CHOICES:
            raise invalid_input(
                "CHOICES_UNKNOWN",
                f"the rows have {len(found)} different references; 2 to {_MOST_CHOICES} are compared",
                "name the choices: multiple_choice: {choices: [...]}",
            )
        return tuple(found)

    def _check_questions(self) -> None:
        """Refuses, before a model is loaded, an evaluation that could judge no row."""
        if self._choices and not all(plan.fields.texts("choices") for plan in self._choices):
            self._references()
        for scorer in self._texts:
            fit = [
                q
                for q in self.questions
                if q.asks and (q.reference is not None or not scorer.needs_reference)
            ]
            if not fit:
                raise invalid_input(
                    "NOTHING_TO_SCORE",
                    f"{scorer.metrics[0].name} can judge none of the {len(self.questions)} rows: "
                    "they have no prompt with a wanted answer",
                    "use rows of messages that end with an assistant's turn, or perplexity for plain texts",
                )

    def _identity(self) -> dict[str, object]:
        run = self.run
        return {
            "spec_digest": run.spec_digest,
            "base_model_digest": run.base_model.digest,
            "dataset_digest": run.dataset.digest,
            "template_digest": run.prompt_template.digest if run.prompt_template else "",
            "targets": [
                [target.name, target.source.digest if target.source else ""] for target in run.targets
            ],
        }

    def _look(self) -> None:
        """Hears what the agent wants, between two batches."""
        self._control.look()
        if self._control.stop:
            raise StopWanted
        if self._control.checkpoint or time.monotonic() - self._saved > _CHECKPOINT_SECONDS:
            self._control.checkpoint = False
            self.save()

    def _tell(self, *, force: bool = False) -> None:
        if force or time.monotonic() >= self._status.due:
            done, total = len(self._judged), len(self.questions) * len(self.run.targets)
            sys.stdout.write(f"{Phase.EVALUATE} {done}/{total} {self._means.shown()}\n")
            self.tell()

    def _fields(self) -> dict[str, object]:
        """What status.json says; a step is a row judged under a target."""
        done, total = len(self._judged), len(self.questions) * len(self.run.targets)
        seconds = time.monotonic() - self._began
        pace = (done - self._resumed) / seconds if seconds > 0 else 0.0
        return {
            "phase": Phase.EVALUATE,
            "step": done,
            "total_steps": total,
            "eta_seconds": (total - done) / pace if pace else None,
            "training_seconds": seconds,
            "resumed_step": self._resumed,
            "resumed_from": self._ledger.origin,
        }


def _judged(index: int, question: Question, answer: Answer, verdicts: Sequence[Verdict]) -> Judged:
    scores: dict[str, float] = {}
    stats: dict[str, Sequence[float]] = {}
    notes: dict[str, str] = {}
    for verdict in verdicts:
        scores |= verdict.scores
        stats |= verdict.stats
        notes |= verdict.notes
    return Judged(index, question.row.line, answer.text, answer.num_tokens, scores, stats, notes)


def said(events: Reporter, evaluation: Evaluation) -> None:
    """Tells people what there is to judge."""
    targets, rows_ = len(evaluation.run.targets), len(evaluation.questions)
    log(events, "info", f"{rows_:,} rows are judged under {targets} target{'s' * (targets != 1)}")
