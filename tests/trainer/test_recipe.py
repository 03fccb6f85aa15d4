"""Which tokens count, and that the loss is that of the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainer import support
from tunesmith_trainer.data import Course, Example, Row
from tunesmith_trainer.fields import Fields
from tunesmith_trainer.model import Model, Scorer
from tunesmith_trainer.recipe.sft import RECIPE
from tunesmith_trainer.run import Precision, Scheduler, Training
from tunesmith_trainer.run import _training as read_training
from tunesmith_trainer.schedule import learning_rate

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class Silent:
    def event(self, kind: str, **fields: Any) -> None:
        pass


def turns(*contents: str) -> Row:
    roles = ("user", "assistant") * len(contents)
    return Row(
        1, tuple({"role": role, "content": text} for role, text in zip(roles, contents, strict=False)), ""
    )


def examples(base: Path, *rows: Row, template: str | None = "own") -> tuple[Any, list[Example]]:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    if template != "own":
        tokenizer.chat_template = template
    return tokenizer, RECIPE.prepare(rows, tokenizer, 256, Silent())


def wanted(tokenizer: Any, example: Example) -> str:
    return str(tokenizer.decode(example.tokens[example.positions + 1]))


def test_only_the_assistants_words_and_its_end_of_turn_count(base: Path) -> None:
    tokenizer, (example,) = examples(base, turns("how are you?", "fine, thank you", "and now?", "one train"))
    assert wanted(tokenizer, example) == "fine, thank you<|im_end|>one train<|im_end|>"
    assert tokenizer.decode(example.tokens).startswith("<|im_start|>user\nhow are you?<|im_end|>\n")


def test_model_without_a_chat_template_gets_a_plain_one(base: Path) -> None:
    tokenizer, (example,) = examples(base, turns("how are you?", "fine"), template=None)
    assert wanted(tokenizer, example) == "fine<|im_end|>"
    assert tokenizer.decode(example.tokens).startswith("### User:\nhow are you?")


def test_all_of_a_plain_text_counts_but_its_first_token(base: Path) -> None:
    tokenizer, (example,) = examples(base, Row(1, (), "the lazy dog"))
    assert example.weight == len(example.tokens) - 1
    assert tokenizer.decode(example.tokens) == "the lazy dog<|im_end|>"


@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "lora"])
def test_loss_on_label_positions_equals_the_plain_models_loss(base: Path, adapter: bool) -> None:
    causal: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    module = get_peft_model(causal, LoraConfig(target_modules="all-linear")) if adapter else causal
    tokenizer, found = examples(
        base, turns("how are you?", "fine, thank you"), turns("one", "two three four")
    )
    model = Model(module, causal, tokenizer, torch.device("cpu"), Precision.FLOAT32)
    batch = RECIPE.collate(found)
    labels = torch.full((2, batch.input_ids.shape[1] + 1), -100)
    ids = torch.zeros_like(labels)
    mask = torch.zeros_like(labels)
    for row, example in enumerate(found):
        ids[row, : len(example.tokens)] = torch.from_numpy(example.tokens)
        mask[row, : len(example.tokens)] = 1
        labels[row, example.positions + 1] = torch.from_numpy(example.tokens[example.positions + 1])
    with torch.no_grad():
        plain = module(input_ids=ids, attention_mask=mask, labels=labels).loss
        total, weight = RECIPE.loss(Scorer(model), batch)
    assert float(total) / weight == pytest.approx(float(plain), rel=1e-6)
    assert module(input_ids=ids).logits.shape[:2] == ids.shape  # the hook is silent outside of the loss


def training(**fields: Any) -> Training:
    return read_training(Fields(support.spec(**fields)["training"], "spec.training"), True)


def test_every_epoch_visits_every_example_once_in_its_own_order() -> None:
    course = Course(training(micro_batch_size=3, max_steps="0", num_epochs=2.0), 11)
    assert (course.micro_per_epoch, course.steps_per_epoch, course.total_steps) == (4, 2, 4)
    epochs = [
        [i for step in steps for batch in course.micro_batches(step) for i in batch.items]
        for steps in ((0, 1), (2, 3))
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(11))
    assert epochs[0] != epochs[1]
    again = Course(training(micro_batch_size=3, max_steps="0", num_epochs=2.0), 11)
    assert again.micro_batches(3) == course.micro_batches(3)  # reached without the steps before
    assert [micro.index for micro in again.micro_batches(2)] == [4, 5]


@pytest.mark.parametrize("scheduler", list(Scheduler))
def test_learning_rate_warms_up_to_the_peak_and_follows_its_course(scheduler: Scheduler) -> None:
    settings = training(lr_scheduler=scheduler.value, warmup_steps="4")
    rates = [learning_rate(settings, 20, step) for step in range(20)]
    assert rates[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert (rates[-1] == 0.01) == (scheduler is Scheduler.CONSTANT)
