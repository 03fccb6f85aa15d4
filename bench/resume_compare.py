"""Is a resumed run the undisturbed one? Ours and the HF Trainer's resume, in one script on the tiny model.

`python -m bench.resume_compare`: between two steps with nothing special (both must be able to), with random
augmentation of the data, after a stop within the accumulation of a step (HF: SIGTERM with
`enable_jit_checkpoint`), and from one process to two of the same global batch. Weights are compared by bits.
The last line is JSON.
"""

# ruff: noqa: E402 - run from a checkout, the packages must be put on the path first

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
_ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "trainer")]

from tests.trainer import storm, support

STEPS, STOP_AT = 8, 3
CASES = ("plain", "augmentation", "accumulation", "ranks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", help="internal: one HF run, its options as JSON")
    options = parser.parse_args()
    if options.child:
        hugging_face(**json.loads(options.child))
        return
    found: dict[str, dict[str, bool]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "tunesmith_trainer.tiny", "--out", str(folder / "tiny")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
        zygote = support.Zygote()
        for case in CASES:
            found[case] = {
                "tunesmith": ours(zygote, folder / f"ours-{case}", folder / "tiny", case),
                "hugging_face": theirs(folder / f"hf-{case}", folder / "tiny", case),
            }
        zygote.close()
    write = sys.stdout.write
    write(f"{'resumed, bits identical':<26}{'Tunesmith':>12}{'HF Trainer':>12}\n")
    for case, answers in found.items():
        write(f"{case:<26}" + "".join(f"{'yes' if same else 'no':>12}" for same in answers.values()) + "\n")
    write(json.dumps(found) + "\n")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{_ROOT / 'trainer'}:{_ROOT}"}


def ours(zygote: support.Zygote, folder: Path, base: Path, case: str) -> bool:
    """Stopped in the middle of a step and resumed, against the undisturbed run."""
    fields: dict[str, Any] = {"max_steps": str(STEPS), "checkpoint_every_steps": "100"}
    if case == "augmentation":
        fields["word_dropout"] = 0.1
    if case == "ranks":
        fields |= {"logical_shards": 2, "gradient_accumulation_steps": 1}
    dataset = support.write_dataset(folder / "dataset", support.CONVERSATIONS)
    job = support.spec(**fields)
    calm = support.make_run(folder / "calm", base, dataset, job)
    other = support.make_run(folder / "other", base, dataset, job)
    assert storm.Crew(zygote.start, calm, 1).end() == [0], support.log_of(calm)
    # The third step's second micro-batch; with nothing special, between the steps.
    stop: dict[str, Any] = {"stop_at": "TRAIN_BATCH_LOAD" if case == "plain" else "TRAIN_BATCH_FORWARD"}
    assert storm.Crew(zygote.start, other, 1, visit=2 * STOP_AT + (case == "plain"), **stop).end() == [75], (
        support.log_of(other)
    )
    ranks = 2 if case == "ranks" else 1
    assert set(storm.Crew(zygote.start, other, ranks).end()) == {0}, support.log_of(other)
    return support.tensors(other) == support.tensors(calm)


def theirs(folder: Path, base: Path, case: str) -> bool:
    """The same with the HF Trainer, each run in processes of its own."""
    calm = hf_run(folder / "calm", base, case, stop=False, resume=False)
    hf_run(folder / "other", base, case, stop=True, resume=False)
    resumed = hf_run(folder / "other", base, case, stop=False, resume=True, ranks=2 if case == "ranks" else 1)
    return calm == resumed


def hf_run(folder: Path, base: Path, case: str, *, stop: bool, resume: bool, ranks: int = 1) -> str:
    """Hash of the trained weights after a run of the HF Trainer in `ranks` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = {"folder": str(folder), "base": str(base), "case": case, "stop": stop, "resume": resume}
    command = [
        sys.executable,
        "-m",
        "bench.resume_compare",
        "--child",
        json.dumps(options | {"ranks": ranks}),
    ]
    children = []
    for rank in range(ranks):
        many = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        many |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        child = {**environment(), **(many if ranks > 1 else {})}
        children.append(subprocess.Popen(command, cwd=_ROOT, env=child, stdout=subprocess.PIPE, text=True))
    answers = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit("a run of the HF Trainer failed")
    return str(json.loads(answers[0].splitlines()[-1])["weights"])


def hugging_face(folder: str, base: str, case: str, stop: bool, resume: bool, ranks: int) -> None:
    """One run of the HF Trainer; the last line tells the hash of the weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed
    from transformers.trainer_jit_checkpoint import JITCheckpointCallback

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    set_seed(7)
    adapter = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)

    class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            ids = torch.randint(3, 500, (16,), generator=torch.Generator().manual_seed(index))
            inputs = ids
            if case == "augmentation":
                inputs = torch.where(torch.rand(16) < 0.1, torch.randint(3, 500, (16,)), ids)
            return {"input_ids": inputs, "labels": ids}

    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=2 if ranks > 1 or case != "ranks" else 4,
        gradient_accumulation_steps=1 if case == "ranks" else 2,
        learning_rate=0.01,
        logging_strategy="no",
        save_strategy="steps" if case != "accumulation" else "no",
        save_steps=STOP_AT,
        enable_jit_checkpoint=case == "accumulation",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=7,
        dataloader_pin_memory=False,
    )

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if stop and case != "accumulation" and state.global_step == STOP_AT:
                control.should_training_stop = True

        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if stop and case == "accumulation" and state.global_step == STOP_AT - 1:
                jit = next(item for item in handler.callbacks if isinstance(item, JITCheckpointCallback))
                assert jit.jit_manager is not None
                jit.jit_manager.kill_wait = 0
                os.kill(os.getpid(), signal.SIGTERM)
                while not jit.jit_manager.is_checkpoint_requested:
                    time.sleep(0.001)

    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Stop()])
    handler = trainer.callback_handler
    trainer.train(resume_from_checkpoint=resume or None)
    sys.stdout.write(json.dumps({"weights": weights_of(model)}) + "\n")


def weights_of(model: Any) -> str:
    """Hash of the trained weights."""
    digest = hashlib.sha256()
    for _, item in sorted(model.named_parameters()):
        if item.requires_grad:
            digest.update(item.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
