"""Evaluations in their run folder: what is judged, that a kill changes no bit, and what is refused."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.trainer import support
from tests.trainer.support import Trainer
from tunesmith_trainer import artifact
from tunesmith_trainer.evaluation.sandbox import Sandbox
from tunesmith_trainer.seeds import Domain, permutation

MakeRun = Callable[..., Path]
Train = Callable[..., int]


def evaluation(*scorers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A job's spec that evaluates."""
    generation = {"max_new_tokens": 8, "temperature": 0.0, "seed": "0", "stop": []}
    return {
        **support.spec(),
        "evaluation": {
            "scorers": [{"name": "", **scorer} for scorer in scorers],
            "generation": {**generation, **fields.pop("generation", {})},
            "batch_size": 4,
            "num_threads": 1,
            **fields,
        },
    }


def target(name: str, folder: Path | None = None) -> dict[str, Any]:
    """A target as the agent writes it into run.json."""
    if folder is None:
        return {"name": name}
    return {"name": name, "path": str(folder), "digest": support.digest_of(folder)}


def samples(run: Path) -> list[dict[str, Any]]:
    lines = (run / "output" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def trained(
    zygote: support.Zygote, base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished training run: its adapter answers otherwise than the base model."""
    job = support.spec(max_steps="12", learning_rate=0.05, keep_checkpoints=4)
    run = support.make_run(tmp_path_factory.mktemp("trained") / "run", base, dataset, job)
    assert zygote.start(run).end() == 0, support.log_of(run)
    return run


def test_targets_are_judged_and_a_checkpoint_is_the_adapter_it_became(
    make_run: MakeRun, train: Train, trained: Path
) -> None:
    last = trained / "checkpoints" / "step-00000012"
    scorers: list[dict[str, Any]] = [
        {kind: {}} for kind in ("exact_match", "token_f1", "rouge", "bleu", "chrf", "json", "perplexity")
    ]
    scorers += [{"name": "number", "regex": {"pattern": r"\d", "full": False}}, {"multiple_choice": {}}]
    scorers.append({"name": "short", "expression": {"expression": "answer | length < 30"}})
    run = make_run(
        evaluation(*scorers),
        targets=[target("base"), target("tuned", trained / "output"), target("checkpoint", last)],
    )
    assert train(run) == 0, support.log_of(run)
    metrics = json.loads((run / "output" / "metrics.json").read_bytes())["metrics"]
    names = ["exact_match", "token_f1", "rouge1", "rouge2", "rougeL", "bleu", "chrf", "json", "perplexity"]
    assert [metric["name"] for metric in metrics] == [*names, "number", "multiple_choice", "short"]
    assert {m["name"] for m in metrics if not m["higher_is_better"]} == {"perplexity"}
    found = samples(run)
    assert [sample["row"] for sample in found] == list(range(1, 25))
    assert found[0]["prompt"] == support.CONVERSATIONS[0]["messages"][:1]
    assert found[0]["reference"] == support.CONVERSATIONS[0]["messages"][1]["content"]
    for sample in found:
        before, tuned, checkpoint = sample["answers"]
        assert tuned == checkpoint, "the last checkpoint has the output's weights"
        assert set(before["scores"]) == {metric["name"] for metric in metrics}
    losses = [
        sum(sample["answers"][place]["stats"]["perplexity"][0] for sample in found) for place in range(2)
    ]
    assert losses[1] < 0.95 * losses[0], "training made the references likelier"
    status = support.status(run)
    assert (status["phase"], status["step"], status["total_steps"]) == ("EVALUATE", 72, 72)
    keys = {key for _, _, values in support.records(run) for key in values}
    assert {"evaluation/exact_match/0", "evaluation/perplexity/2"} <= keys


def test_perplexity_is_that_of_the_evaluation_in_training(
    make_run: MakeRun, train: Train, trained: Path, base: Path, dataset: Path
) -> None:
    """The same masks: e to the loss that training reports for the same weights and rows."""
    job = support.spec(max_steps="1", eval_every_steps="1", eval_fraction=0.5, learning_rate=1e-12)
    held = make_run(job, "held")
    assert train(held) == 0
    (loss,) = [values["eval/loss"] for _, _, values in support.records(held) if "eval/loss" in values]
    run = make_run(evaluation({"perplexity": {}}), targets=[target("base")])
    assert train(run) == 0, support.log_of(run)
    chosen = permutation(7, Domain.SPLIT, 0, 24)[:12]  # what training holds out
    stats = [samples(run)[index]["answers"][0]["stats"]["perplexity"] for index in chosen]
    assert math.isclose(sum(s[0] for s in stats) / sum(s[1] for s in stats), loss, rel_tol=1e-5)


def test_a_prompt_template_makes_questions_of_records(
    make_run: MakeRun, train: Train, tmp_path: Path
) -> None:
    data = support.write_dataset(
        tmp_path / "records", [{"city": "Graz", "trains": 3}, {"city": "Linz", "trains": 5}]
    )
    said = {"system": "", "prompt": "how many trains go to {{ city }}?", "completion": "{{ trains }} trains"}

    def fill(folder: Path) -> None:
        (folder / "template.json").write_text(json.dumps(said))

    made = artifact.write(tmp_path / "template", "prompt", {}, fill)
    run = make_run(
        evaluation({"exact_match": {}}),
        dataset=data,
        targets=[target("base")],
        prompt_template={"path": str(made.path), "digest": made.digest},
    )
    assert train(run) == 0, support.log_of(run)
    first, second = samples(run)
    assert first["prompt"] == [{"role": "user", "content": "how many trains go to Graz?"}]
    assert second["reference"] == "5 trains"
    assert (first["row"], second["row"]) == (1, 2)


def test_a_killed_evaluation_ends_with_the_same_bits(
    make_run: MakeRun, start: Callable[..., Trainer], trained: Path, tmp_path: Path
) -> None:
    rows = [
        json.loads(json.dumps(row).replace("city", f"city {n}"))
        for n in range(4)
        for row in support.CONVERSATIONS
    ]
    data = support.write_dataset(tmp_path / "many", rows)
    pattern = {"name": "number", "regex": {"pattern": r"\d", "full": False}}
    job = evaluation({"exact_match": {}}, {"perplexity": {}}, pattern, generation={"max_new_tokens": 24})
    targets = [target("base"), target("tuned", trained / "output")]
    calm = make_run(job, "calm", dataset=data, targets=targets)
    assert start(calm).end() == 0, support.log_of(calm)

    memory = tmp_path / "memory"
    memory.mkdir()
    fields = {"dataset": data, "targets": targets, "snapshots": str(memory)}
    for epoch, judged in ((1, 20), (2, 115)):  # under the first target, and under the second
        run = make_run(job, f"killed-{epoch}", epoch=epoch, **fields)
        trainer = start(run)
        ledger = memory / f"{epoch}.judged"
        support.wait_for(lambda: num_lines(ledger) > judged, f"{judged} judged rows")  # noqa: B023 - called now
        trainer.kill()
    with (memory / "2.judged").open("ab") as file:
        file.write(b'{"target":1,"row":')  # a torn line
    run = make_run(job, "last", epoch=3, **fields)
    assert start(run).end() == 0, support.log_of(run)
    assert support.status(run)["resumed_step"] >= 115
    assert support.status(run)["resumed_from"] == "snapshot"
    assert support.digest_of(run / "output") == support.digest_of(calm / "output")


def test_a_stopped_evaluation_goes_on_from_its_checkpoint_elsewhere(
    make_run: MakeRun, start: Callable[..., Trainer], trained: Path
) -> None:
    job = evaluation({"exact_match": {}}, generation={"max_new_tokens": 40}, batch_size=1)
    calm = make_run(job, "calm", targets=[target("base")])
    assert start(calm).end() == 0, support.log_of(calm)
    run = make_run(job, "stopped", targets=[target("base")])
    trainer = start(run)
    ledger = run / "1.judged"
    support.wait_for(lambda: num_lines(ledger) > 2, "a judged row")
    trainer.terminate()
    assert trainer.end() == 75, support.log_of(run)
    made = support.events(run, "checkpoint")[-1]
    given = {"path": str(run / made["path"]), "digest": made["digest"], "step": made["step"]}
    again = make_run(job, "again", epoch=2, targets=[target("base")], checkpoint=given)
    assert start(again).end() == 0, support.log_of(again)
    assert support.status(again)["resumed_step"] == made["step"] > 0
    assert support.digest_of(again / "output") == support.digest_of(calm / "output")


@pytest.mark.parametrize(
    ("scorers", "fields", "reason"),
    [
        ([{"regex": {"pattern": "(("}}], {}, "FIELD_INVALID"),
        ([{"expression": {"expression": "answer |"}}], {}, "FIELD_INVALID"),
        ([{"telepathy": {}}], {}, "SCORER_UNKNOWN"),
        ([{"exact_match": {}}, {"exact_match": {}}], {}, "SCORER_TWICE"),
        ([{"judge": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}}], {}, "JUDGE_NOT_ALLOWED"),
        ([{"exact_match": {}}], {"targets": "damaged"}, "INPUT_DAMAGED"),
        ([{"exact_match": {}}], {"targets": "answers"}, "TARGET_INVALID"),
        ([{"exact_match": {}}], {"dataset": "texts"}, "NOTHING_TO_SCORE"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    make_run: MakeRun,
    train: Train,
    trained: Path,
    tmp_path: Path,
    scorers: list[dict[str, Any]],
    fields: dict[str, str],
    reason: str,
) -> None:
    more: dict[str, Any] = {"targets": [target("base")]}
    if fields.get("targets") == "damaged":
        more["targets"] = [{**target("tuned", trained / "output"), "digest": "0" * 64}]
    elif fields.get("targets") == "answers":
        made = artifact.write(
            tmp_path / "answers", "checkpoint", {"holds": "evaluation"}, lambda folder: None
        )
        more["targets"] = [target("answers", made.path)]
    if fields.get("dataset"):
        more["dataset"] = support.write_dataset(tmp_path / "texts", [{"text": "one"}, {"text": "two"}])
    run = make_run(evaluation(*scorers), **more)
    assert train(run) in (64, 70)
    ended = support.finished(run)
    assert ended["reason"] == reason
    assert ended["remedy"]


def test_a_pattern_without_end_costs_its_row_not_the_evaluation(make_run: MakeRun, train: Train) -> None:
    box = Sandbox()
    slow = {"pattern": r"(a+)+$", "full": False, "text": "a" * 40 + "b"}
    try:
        assert "longer than 1 s" in box.ask(slow)["error"]
        assert box.ask({"pattern": "b$", "full": False, "text": "ab"}) == {"value": 1.0}
        assert "error" in box.ask({"expression": "''.__class__.__mro__", "values": {}})
        assert "error" in box.ask({"expression": "range(10**9) | list | length", "values": {}})
    finally:
        box.close()


@contextmanager
def judge_endpoint(answers: list[tuple[int, str]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers in turn, the last for ever; gives its address and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**body, "key": self.headers["Authorization"]})
            status, words = answers.pop(0) if len(answers) > 1 else answers[0]
            data = json.dumps({"choices": [{"message": {"content": words}}]}).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_judge_is_asked_again_until_it_gives_a_score(
    make_run: MakeRun, train: Train, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("secret-key\n")
    answers = [(503, ""), (200, "SCORE: 11"), (200, "Good.\nSCORE: 7.5")]
    with judge_endpoint(answers) as (url, asked):
        judges = tmp_path / "judges.json"
        judges.write_text(json.dumps([{"base_url": url, "key_file": str(tmp_path / "key")}]))
        job = evaluation({"judge": {"base_url": url, "model": "wise", "max_retries": 3}}, max_rows=1)
        run = make_run(job, targets=[target("base")], judges=str(judges))
        assert train(run) == 0, support.log_of(run)
    (sample,) = samples(run)
    assert sample["answers"][0]["scores"] == {"judge": 7.5}
    assert len(asked) == 3
    assert asked[0]["key"] == "Bearer secret-key"
    assert sample["prompt"][0]["content"] in asked[0]["messages"][0]["content"]
    assert "secret-key" not in (run / "run.json").read_text()
