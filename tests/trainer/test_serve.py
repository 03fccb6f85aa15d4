"""A chat worker as its agent starts it: answers equal those of plain transformers and peft."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer import support
from tunesmith_trainer import artifact

QUESTION = [{"role": "user", "content": "how many trains go to city 3?"}]
# PEFT reads what transformers is going to rename.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
GREEDY = {"max_new_tokens": 24}


class Worker:
    """A worker process: say something, hear its events."""

    def __init__(self, model: Path, *options: str) -> None:
        command = [sys.executable, "-m", "tunesmith_trainer.serve", "--model", str(model), "--threads", "1"]
        self.process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=support.TRAINER,
            text=True,
        )
        self._tasks = 0
        self.hear("ready")

    def say(self, do: str = "answer", task: str = "", **fields: Any) -> str:
        assert self.process.stdin is not None
        self._tasks += 1
        task = task or f"task-{self._tasks}"
        self.process.stdin.write(json.dumps({"do": do, "task": task, **fields}) + "\n")
        self.process.stdin.flush()
        return task

    def next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the worker ended"
        event: dict[str, Any] = json.loads(line)
        return event

    def hear(self, *kinds: str, task: str = "") -> dict[str, Any]:
        while True:
            event = self.next()
            if event["event"] in kinds and event.get("task", "") == task:
                return event

    def ask(self, messages: list[dict[str, str]] = QUESTION, **fields: Any) -> tuple[str, dict[str, Any]]:
        """The whole answer, and the last event."""
        task = self.say(messages=messages, **{"parameters": GREEDY, **fields})
        text = ""
        while True:
            event = self.hear("text", "done", "failed", task=task)
            text += event.get("text", "")
            if event["event"] != "text":
                return text, event

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(90)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def worker(base: Path) -> Iterator[Worker]:
    found = Worker(base, "--adapters", "2")
    yield found
    found.end()


def plain(folder: Path, adapter: Path | None = None, **parameters: Any) -> str:
    """What transformers' own generate answers, with peft's own loading."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    inputs = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(11)
    output = model.generate(**inputs, **{"max_new_tokens": 24, "do_sample": False, **parameters})
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_the_likeliest_answer_is_that_of_transformers(worker: Worker, base: Path) -> None:
    text, done = worker.ask()
    assert text == plain(base)
    assert (done["finish"], done["completion_tokens"]) == ("length", 24)


def test_a_chosen_answer_is_that_of_transformers_with_the_same_seed(worker: Worker, base: Path) -> None:
    chosen: Any = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.2}
    text, _ = worker.ask(parameters={**GREEDY, **chosen, "seed": 11})
    assert text == plain(base, do_sample=True, **chosen)
    assert text != worker.ask(parameters={**GREEDY, **chosen, "seed": 12})[0]


def test_adapters_and_checkpoints_are_swapped_and_the_base_stays(
    worker: Worker, base: Path, make_run: Callable[..., Path], train: Callable[..., int]
) -> None:
    before = worker.ask()[0]
    outputs, points = [], []
    for steps in ("2", "8"):
        run = make_run(support.spec(max_steps=steps), name=f"run-{steps}")
        assert train(run) == 0
        outputs.append(run / "output")
        points.append(sorted((run / "checkpoints").glob("step-*"))[-1])
    expected = [plain(base, output) for output in outputs]
    assert len({before, *expected}) == 3
    for _ in range(2):  # the second time each was dropped before: two fit
        for folder, text in zip([*outputs, *points], [*expected, *expected], strict=True):
            assert worker.ask(digest=support.digest_of(folder), folder=str(folder))[0] == text
        assert worker.ask()[0] == before


def test_answers_under_way_take_turns_with_their_own_adapters(
    worker: Worker, base: Path, make_run: Callable[..., Path], train: Callable[..., int]
) -> None:
    run = make_run(support.spec())
    assert train(run) == 0
    output = run / "output"
    first = worker.say(messages=QUESTION, parameters={"max_new_tokens": 400})
    worker.hear("text", task=first)
    second = worker.say(
        messages=QUESTION, parameters=GREEDY, digest=support.digest_of(output), folder=str(output)
    )
    text = ""
    order: list[str] = []
    while len(order) < 2:
        event = worker.next()
        if event["event"] == "done":
            order.append(event["task"])
        if event.get("task") == second:
            text += event.get("text", "")
    assert order == [second, first]
    assert text == plain(base, output)


def test_a_checkpoint_of_a_full_fine_tuning_answers_and_the_worker_ends_with_its_agent(
    base: Path, make_run: Callable[..., Path], train: Callable[..., int]
) -> None:
    run = make_run(support.spec(adapter={"full": {}}, learning_rate=0.003))
    assert train(run) == 0
    expected = plain(run / "output")
    assert expected != plain(base)
    point = sorted((run / "checkpoints").glob("step-*"))[-1]
    point = point.rename(point.with_name(support.digest_of(point)))  # as it lies in the agent's cache
    worker = Worker(base, "--checkpoint", str(point))
    assert worker.ask()[0] == expected
    worker.say(messages=QUESTION, parameters={"max_new_tokens": 450})
    worker.end()  # whoever started it is gone, in the middle of an answer
    assert worker.process.returncode == 0


def test_a_stop_text_ends_the_answer_and_is_not_shown(worker: Worker) -> None:
    whole = worker.ask()[0]
    stop = whole[9:13]
    text, done = worker.ask(parameters={**GREEDY, "stop": [stop]})
    assert text == whole[: whole.index(stop)]
    assert done["finish"] == "stop"


def test_an_answer_that_is_no_longer_wanted_ends_between_two_tokens(worker: Worker) -> None:
    task = worker.say(messages=QUESTION, parameters={"max_new_tokens": 450})
    worker.hear("text", task=task)
    worker.say("stop", task)
    last = worker.say(messages=QUESTION, parameters={"max_new_tokens": 1})
    seen = [worker.next()]
    while seen[-1].get("task") != last or seen[-1]["event"] != "done":
        seen.append(worker.next())
    assert not any(event["event"] == "done" and event["task"] == task for event in seen)


def test_a_long_conversation_names_its_tokens_and_the_limit(worker: Worker) -> None:
    _, failed = worker.ask([{"role": "user", "content": "train " * 600}])
    assert failed["reason"] == "CONTEXT_TOO_LONG"
    assert "512" in failed["message"]


def test_a_damaged_adapter_is_named_and_the_others_go_on(
    worker: Worker, tmp_path: Path, make_run: Callable[..., Path], train: Callable[..., int]
) -> None:
    run = make_run(support.spec(max_steps="2"))
    assert train(run) == 0
    weights = run / "output" / "adapter_model.safetensors"
    good, whole = worker.ask()[0], weights.read_bytes()
    config = run / "output" / "adapter_config.json"
    digest = support.digest_of(run / "output")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    _, failed = worker.ask(digest=digest, folder=str(run / "output"))
    assert failed["reason"] == "ADAPTER_DAMAGED"
    assert digest in failed["message"]
    assert weights.name in failed["message"]
    for content in (whole[:-9], b"junk", b""):  # whole, but never right
        weights.write_bytes(content)
        assert _asked(worker, run / "output")["reason"] == "ADAPTER_DAMAGED"
    for name, changes in (
        ("rank", {"r": 2}),
        ("kind", {"peft_type": "IA3"}),
        ("code", {"auto_mapping": {"x": "y"}}),
    ):
        said = json.loads(config.read_text())
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({**said, **changes}))
        (tmp_path / name / weights.name).write_bytes(whole)
        assert _asked(worker, tmp_path / name)["reason"] == "ADAPTER_DAMAGED"
    assert worker.ask()[0] == good


def _asked(worker: Worker, folder: Path) -> dict[str, Any]:
    """What a worker says of an adapter that is sealed as it is now."""
    artifact.seal(folder, "model", {})
    return worker.ask(digest=support.digest_of(folder), folder=str(folder))[1]


def test_a_template_that_does_not_end_is_an_error(base: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "endless"
    shutil.copytree(base, folder)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0]['content'] == 'loop' %}" + loop + "{% elif messages[0]['role'] == 'system' %}"
        "{{ raise_exception('no system here') }}{% else %}{{ messages[0]['content'] }}{% endif %}"
    )
    artifact.seal(folder, "model", {})
    worker = Worker(folder)
    began = time.monotonic()
    _, failed = worker.ask([{"role": "user", "content": "loop"}])
    assert failed["reason"] == "CHAT_TEMPLATE_REFUSED"
    assert "2 s" in failed["message"]
    assert time.monotonic() - began < 60  # it would take hours
    _, failed = worker.ask([{"role": "system", "content": "x"}])
    assert (failed["reason"], "no system here" in failed["message"]) == ("CHAT_TEMPLATE_REFUSED", True)
    assert worker.ask([{"role": "user", "content": "hello"}])[1]["event"] == "done"
    worker.end()


def test_a_prompt_template_makes_what_the_user_says(worker: Worker, base: Path) -> None:
    parts = {"prompt": "how many {{ prompt }} go to city {{ turns + 2 }}?", "completion": "{{ nothing }}"}
    assert worker.ask([{"role": "user", "content": "trains"}], prompt_parts=parts)[0] == plain(base)
    for wrong in ("{{ question }}", "{% for a in range(9**9) %}{% endfor %}", "{{ ''.__class__.__mro__ }}"):
        _, failed = worker.ask(prompt_parts={"prompt": wrong})
        assert failed["reason"] == "TEMPLATE_REFUSED"
        assert "message 1" in failed["message"]
