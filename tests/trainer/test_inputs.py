"""Bad input is refused with its name and a remedy, and nothing in a model folder is ever executed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer import support
from tunesmith_trainer import artifact, data

Train = Callable[..., int]
MakeRun = Callable[..., Path]


def refused(run: Path, code: int) -> dict[str, Any]:
    assert code == 64, support.log_of(run)
    record = support.finished(run)
    assert record["result"] == "failed"
    assert record["failure_class"] == "INVALID_INPUT"
    assert record["remedy"]
    assert "Traceback" not in record["message"]
    return record


def altered(base: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(base, folder)
    change(folder)
    artifact.seal(folder, "model", {})
    return folder


def add_auto_map(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "text_config": {"auto_map": {"AutoConfig": "evil.Config"}}}))


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "reason", "word"),
    [
        (add_auto_map, "MODEL_UNSAFE", "auto_map"),
        (only_pickle, "MODEL_UNSAFE", "pytorch_model.bin"),
        (lambda folder: (folder / "modeling.py").write_text("raise"), "MODEL_UNSAFE", "modeling.py"),
        (lambda folder: (folder / "config.json").write_text("{"), "MODEL_INVALID", "config.json"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99),
            "MODEL_INVALID",
            "cannot be loaded",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "MODEL_INVALID", "safetensors"),
    ],
)
def test_unsafe_or_broken_model_is_refused(
    make_run: MakeRun,
    train: Train,
    base: Path,
    tmp_path: Path,
    change: Callable[[Path], object],
    reason: str,
    word: str,
) -> None:
    run = make_run(support.spec(), base=altered(base, tmp_path / "changed", change))
    record = refused(run, train(run))
    assert record["reason"] == reason
    assert word in record["message"]


def test_a_class_that_a_policy_let_in_is_passed_over(base: Path, tmp_path: Path) -> None:
    import torch

    from tunesmith_trainer import model

    def name_own(folder: Path) -> None:
        for name in ("config.json", "tokenizer_config.json"):
            said = json.loads((folder / name).read_text())
            own = {"AutoModelForCausalLM": "own.Model", "AutoConfig": "own.Config", "AutoTokenizer": "own.T"}
            (folder / name).write_text(json.dumps({**said, "auto_map": own}))

    folder = altered(base, tmp_path / "own", name_own)
    causal, _ = model.read(folder, torch.device("cpu"), torch.float32)
    assert type(causal).__module__.startswith("transformers.")


def test_input_that_is_not_what_its_manifest_says_is_refused(
    make_run: MakeRun, train: Train, tmp_path: Path
) -> None:
    dataset = support.write_dataset(tmp_path / "data", support.CONVERSATIONS)
    with (dataset / "data.jsonl").open("a") as file:
        file.write("\n")
    run = make_run(support.spec(), dataset=dataset)
    assert train(run) == 70, support.log_of(run)
    record = support.finished(run)
    # Not the user's fault: the node's copy is bad, and another attempt fetches it anew.
    assert (record["failure_class"], record["reason"]) == ("INFRA", "INPUT_DAMAGED")
    assert "data.jsonl" in record["message"]


def _replace(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-20])


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"{")
        file.seek(0)
        file.write(b"x")


@pytest.mark.parametrize("damage", [_replace, _overwrite, Path.unlink])
def test_input_that_is_damaged_after_its_check_is_not_the_users_fault(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    dataset = support.write_dataset(tmp_path / "data", support.CONVERSATIONS)
    digest = support.digest_of(dataset)

    def read() -> None:
        with artifact.steady((dataset, digest)):
            damage(dataset / "data.jsonl")
            list(data.rows(dataset))  # whatever it makes of it: a bad row, fewer rows, no file

    with pytest.raises(artifact.DamagedError):
        read()


def test_input_that_others_touch_is_as_good_as_before(tmp_path: Path) -> None:
    dataset = support.write_dataset(tmp_path / "data", support.CONVERSATIONS)
    with artifact.steady((dataset, support.digest_of(dataset))):
        os.utime(dataset / "data.jsonl", (1, 1))
        assert len(list(data.rows(dataset))) == len(support.CONVERSATIONS)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": "hello"}, "DATA_ROW_INVALID"),
        ({"messages": [{"role": "user"}]}, "DATA_ROW_INVALID"),
        ({"prompt": "hello"}, "DATA_ROW_INVALID"),
    ],
)
def test_bad_row_is_named_by_its_line(
    make_run: MakeRun, train: Train, tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    dataset = support.write_dataset(tmp_path / "data", [*support.CONVERSATIONS[:2], row])
    run = make_run(support.spec(), dataset=dataset)
    record = refused(run, train(run))
    assert record["reason"] == reason
    assert "line 3" in record["message"]


def test_rows_without_labels_are_left_out_and_long_ones_cut_with_a_warning(
    make_run: MakeRun, train: Train, tmp_path: Path
) -> None:
    silent = {"messages": [{"role": "user", "content": "hello"}]}
    long = {"text": "train " * 300}
    dataset = support.write_dataset(tmp_path / "data", [*support.CONVERSATIONS[:6], silent, long])
    run = make_run(support.spec(max_steps="2"), dataset=dataset)
    assert train(run) == 0, support.log_of(run)
    messages = [event["message"] for event in support.events(run, "log") if event["level"] == "warning"]
    assert any("1 of 8 examples have no token to learn" in message for message in messages)
    assert any("1 of 8 examples are longer than 64 tokens" in message for message in messages)


def test_no_labels_at_all_is_refused(make_run: MakeRun, train: Train) -> None:
    run = make_run(support.spec(max_length=4))
    record = refused(run, train(run))
    assert record["reason"] == "NO_LABELS"
    assert "max_length" in record["remedy"]


def test_unknown_target_module_is_refused(make_run: MakeRun, train: Train) -> None:
    adapter = {"lora": {"r": 4, "alpha": 8.0, "target_modules": ["nonesuch"]}}
    run = make_run(support.spec(adapter))
    record = refused(run, train(run))
    assert record["reason"] == "ADAPTER_INVALID"
    assert "nonesuch" in record["message"]


@pytest.mark.parametrize(
    ("field", "value"), [("lr_scheduler", "LR_SCHEDULER_ODD"), ("micro_batch_size", 0), ("max_steps", "1.5")]
)
def test_bad_field_is_named_with_its_value(make_run: MakeRun, train: Train, field: str, value: Any) -> None:
    run = make_run(support.spec(**{field: value}))
    record = refused(run, train(run))
    assert f"spec.training.{field}" in record["message"]
    assert repr(value) in record["message"]


def test_exploding_loss_fails_with_the_step(
    make_run: MakeRun, train: Train, base: Path, tmp_path: Path
) -> None:
    def explode(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"][5] = float("inf")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    run = make_run(support.spec(), base=altered(base, tmp_path / "inf", explode))
    assert train(run) == 70, support.log_of(run)
    record = support.finished(run)
    assert record["failure_class"] == "NAN_LOSS"
    assert "step 1" in record["message"]
    assert "learning_rate" in record["remedy"]
    assert not (run / "output").exists()


def test_out_of_memory_names_the_settings_to_lower() -> None:
    from tunesmith_trainer.failure import classify

    failure = classify(
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    )
    assert failure.failure_class == "OOM"
    assert "micro_batch_size" in failure.remedy
    assert "max_length" in failure.remedy
