"""Conversations on the whole platform: base, version and checkpoint answer as the trainer's samples did."""

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.jobs import spec, wait_state, wait_step
from tests.support.platform import Platform, embedded
from tests.support.processes import BIN, children, clean_environment, wait_for
from tunesmith import Client, FailedPrecondition, InvalidArgument, NotFound, Unavailable

QUESTION = "what is 3 plus 3?"
GREEDY: Any = {"max_new_tokens": 48}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with a trained model `sums`, version 1, and the job that made it."""
    with embedded(tmp_path_factory.mktemp("chat"), {"TUNESMITH_AGENT_CHAT_THREADS": "1"}) as platform:
        platform.load_inputs()
        yield platform


@pytest.fixture(scope="module")
def job(platform: Platform) -> Any:
    with platform.client() as client:
        made = client.jobs.submit({**spec(20), "experiment": "sums", "sample_prompts": [QUESTION]})
        return wait_state(client, made.name, "SUCCEEDED").proto


@pytest.fixture
def client(platform: Platform) -> Iterator[Client]:
    with platform.client() as client:
        yield client


def _workers(platform: Platform) -> list[psutil.Process]:
    """The chat workers of the platform's node."""
    return children(platform.processes["up"].pid, "tunesmith_trainer.serve")


def test_base_version_and_checkpoint_answer_as_the_trainer_did(
    platform: Platform, client: Client, job: Any
) -> None:
    sample = job.samples[0]
    assert sample.before != sample.after
    for target in ("sums@1", "sums@latest", f"job:{job.display_name}", f"job:{job.display_name}@20"):
        assert client.chat.complete(target, QUESTION, **GREEDY).text.strip() == sample.after
    assert client.chat.complete("tiny", QUESTION, **GREEDY).text.strip() == sample.before
    texts = ["", ""]
    for response in client.chat.stream(["tiny", "sums@1"], QUESTION, **GREEDY):
        texts[response.target] += response.delta
    assert [text.strip() for text in texts] == [sample.before, sample.after]
    assert len(_workers(platform)) == 1, "the base is loaded once; adapters are swapped"


def test_a_running_job_can_be_asked_from_its_checkpoint(client: Client) -> None:
    running = client.jobs.submit(spec(100_000, checkpoint_every_steps=20, keep_checkpoints=1000))
    wait_step(client, running.name, 5)
    points = wait_for(lambda: client.jobs.get(running.name).checkpoints(), 90, "a checkpoint is committed")
    reply = client.chat.complete(f"job:{running.name}@{points[-1].step}", QUESTION, **GREEDY)
    assert reply.finish in ("stop", "length")
    running.cancel(now=True)


def test_rest_streams_the_same_answer(platform: Platform, client: Client, job: Any) -> None:
    body = {
        "targets": ["projects/default/models/sums/versions/1"],
        "messages": [{"role": "user", "content": QUESTION}],
        "parameters": {"max_new_tokens": 48},
    }
    with (
        platform.rest() as rest,
        rest.stream("POST", "/api/v1/projects/default:chat", json=body) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert "".join(event.get("delta", "") for event in events).strip() == job.samples[0].after
    assert events[-2]["usage"]["prompt_tokens"] > 0


def test_a_prompt_template_makes_what_the_user_says(platform: Platform, client: Client) -> None:
    with platform.rest() as rest:
        for text in ("what is {{ prompt }}?", "never {{ prompt }}"):
            body = {"prompt_id": "sum", "parts": {"prompt": text}, "request_id": text[:5]}
            assert rest.post("/api/v1/projects/default/prompts", json=body).status_code == 200
    plain = client.chat.complete("tiny", QUESTION, **GREEDY).text
    for name in ("sum@1", "projects/default/prompts/sum/versions/1"):
        assert client.chat.complete("tiny", "3 plus 3", prompt_template=name, **GREEDY).text == plain
    assert client.chat.complete("tiny", "3 plus 3", prompt_template="sum", **GREEDY).text != plain
    for wrong in ("sum@9", "summ"):
        with pytest.raises(NotFound):
            client.chat.complete("tiny", QUESTION, prompt_template=wrong)


def test_what_is_wrong_is_named(platform: Platform, client: Client, job: Any) -> None:
    with pytest.raises(InvalidArgument) as long:
        client.chat.complete("tiny", "train " * 2000)
    assert long.value.reason == "CONTEXT_TOO_LONG"
    assert re.search(r"has \d+ tokens; the model sees 512", long.value.message)
    with pytest.raises(NotFound) as step:
        client.chat.complete(f"job:{job.display_name}@7", QUESTION)
    assert step.value.reason == "CHECKPOINT_NOT_FOUND"
    with pytest.raises(InvalidArgument) as parameter:
        client.chat.complete("tiny", QUESTION, temprature=1)
    assert parameter.value.field == "parameters.temprature"
    huge = {
        "targets": ["projects/default/baseModels/tiny"],
        "messages": [{"role": "user", "content": "x" * 10_000_000}],
    }
    with platform.rest() as rest:
        answer = rest.post("/api/v1/projects/default:chat", json=huge)
    assert (answer.status_code, answer.json()["reason"]) == (429, "MESSAGE_TOO_LARGE")


def test_a_killed_worker_is_an_error_at_once_and_the_next_question_is_answered(
    platform: Platform, client: Client
) -> None:
    client.chat.complete("tiny", QUESTION, max_new_tokens=1)
    (worker,) = _workers(platform)
    worker.send_signal(signal.SIGSTOP)  # so that the answer is surely still under way
    answer = client.chat.stream("tiny", QUESTION, **GREEDY)
    next(answer)
    worker.kill()
    with pytest.raises(Unavailable) as lost:
        list(answer)
    assert (lost.value.reason, "ask again" in lost.value.remedy) == ("CHAT_LOST", True)
    assert client.chat.complete("tiny", QUESTION, **GREEDY).finish


def test_a_damaged_adapter_is_named_by_its_digest(platform: Platform, client: Client) -> None:
    made = client.jobs.submit({**spec(2, seed=99), "experiment": "broken"})
    version = client.models.version(wait_state(client, made.name, "SUCCEEDED").proto.model_version)
    weights = next(file for file in version.manifest.files if file.path.endswith(".safetensors"))
    (blob,) = (
        path for path in (platform.root / "data" / "blobs").rglob(f"*{weights.sha256[4:]}") if path.is_file()
    )
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    with pytest.raises(FailedPrecondition) as damaged:
        client.chat.complete("broken@1", QUESTION)
    assert damaged.value.reason == "ARTIFACT_CORRUPT"
    assert version.digest in damaged.value.message
    assert weights.path in damaged.value.message


def test_conversations_are_kept_as_rows_of_a_dataset(client: Client) -> None:
    for number in (1, 2):
        turns = [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": f"answer {number}"},
        ]
        version = client.chat.keep("kept", turns)
        assert (version.version, version.num_rows) == (number, number)
        before = version.name.rpartition("/")[0] + "/1" if number == 2 else ""
        assert version.parent == before, "the version before stays, and is named"


def test_the_command_answers_once_from_option_and_pipe(platform: Platform, job: Any) -> None:
    done = platform.run("chat", "sums@1", "-m", QUESTION, "--max-new-tokens", "48", "--json")
    assert done.returncode == 0, done.stderr
    (reply,) = json.loads(done.stdout)
    assert (reply["text"].strip(), reply["target"]) == (job.samples[0].after, "sums@1")
    env = {"TUNESMITH_ADDRESS": platform.address, "TUNESMITH_TOKEN": platform.token}
    piped = subprocess.run(
        [str(BIN / "tunesmith"), "chat", "sums@1", "--max-new-tokens", "48"],
        env=clean_environment(env), input=QUESTION, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert piped.stdout.strip() == job.samples[0].after
    missing = platform.run("chat", "nobody", "-m", QUESTION)
    assert (missing.returncode, "models bases" in missing.stderr) == (3, True)


def test_the_command_holds_a_conversation(platform: Platform, client: Client, tmp_path: Path) -> None:
    lines = ["/set max_new_tokens 4", "/show", QUESTION, "/save talked", "/reset", "/save talked", "/quit"]
    shown = _typed(platform, ["chat", "tiny"], lines)
    assert '{"max_new_tokens": 4}' in shown
    assert "4 tokens" in shown
    assert "kept as talked@1" in shown
    assert "nothing was said yet" in shown
    assert client.datasets.get("talked").latest.num_rows == 1


def _typed(platform: Platform, command: list[str], lines: list[str]) -> str:
    """What a terminal shows when somebody types these lines, each once the one before is answered."""
    ours, theirs = pty.openpty()
    env = {"TUNESMITH_ADDRESS": platform.address, "TUNESMITH_TOKEN": platform.token, "TERM": "dumb"}
    child = subprocess.Popen(
        [str(BIN / "tunesmith"), *command],
        env=clean_environment(env),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen, answered = b"", 0
    try:
        for line in lines:
            while not _plain(seen[answered:]).endswith("> "):  # a read may end within a character or a code
                seen += os.read(ours, 4096)
            answered = len(seen)
            os.write(ours, f"{line}\n".encode())
        while True:
            seen += os.read(ours, 4096)
    except OSError:  # the terminal is closed when the child ends
        return _plain(seen)
    finally:
        os.close(ours)
        assert child.wait(90) == 0


def _plain(shown: bytes) -> str:
    """What a terminal shows, without the codes for bold."""
    return shown.decode(errors="replace").replace("\x1b[1m", "").replace("\x1b[0m", "")
