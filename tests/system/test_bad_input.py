"""What users get wrong: an error that names field, value and remedy, an exit code, no traceback."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import yaml

from tests.support.jobs import spec, wait_state
from tests.support.platform import Platform, embedded, tiny_model
from tests.support.processes import BIN, children, clean_environment, free_port, wait_for
from tunesmith.api.registry.v1 import blobs_pb2, blobs_pb2_grpc


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Asserts that a command failed and said why."""
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    for word in words:
        assert word in done.stderr, done.stderr


def submit(platform: Platform, tmp_path: Path, content: Any) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "job.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return platform.run("submit", str(path))


def test_an_unknown_key_is_named_with_what_was_meant(embedded_platform: Platform, tmp_path: Path) -> None:
    content = spec()
    content["training"]["lerning_rate"] = 1
    refused(submit(embedded_platform, tmp_path, content), "training.lerning_rate", "learning_rate")


def test_a_negative_learning_rate_is_refused(embedded_platform: Platform, tmp_path: Path) -> None:
    done = submit(embedded_platform, tmp_path, spec(learning_rate=-0.5))
    refused(done, "training.learning_rate", "-0.5", "greater than 0")


@pytest.mark.parametrize("name", ["a/b", "a*", "A", "", "x" * 41])
def test_a_job_name_that_could_leave_its_subject_is_refused(
    embedded_platform: Platform, tmp_path: Path, name: str
) -> None:
    content = {**spec(), "experiment": name}
    done = submit(embedded_platform, tmp_path, content)
    if name:
        refused(done, "experiment")
    else:
        assert done.returncode == 0, "an empty name means the default"


def test_a_missing_dataset_fails_the_job_with_a_remedy(embedded_platform: Platform, tmp_path: Path) -> None:
    refused(submit(embedded_platform, tmp_path, {**spec(), "dataset": "sum"}), "sum", "sums")


def test_a_missing_base_model_fails_the_job_with_a_remedy(
    embedded_platform: Platform, tmp_path: Path
) -> None:
    refused(submit(embedded_platform, tmp_path, {**spec(), "base_model": "tiyn"}), "tiyn", "tiny")


def test_rows_that_cannot_be_used_are_named_by_line(embedded_platform: Platform, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    path.write_text(f"{good}\n{{not json\n{good}\n" + json.dumps({"messages": [{"role": "user"}]}) + "\n")
    refused(embedded_platform.run("datasets", "import", str(path), "--id", "bad"), "line 2", "line 4")
    with embedded_platform.client() as client:
        assert "bad" not in {dataset.dataset_id for dataset in client.datasets.list()}


def test_an_empty_dataset_is_refused(embedded_platform: Platform, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    refused(embedded_platform.run("datasets", "import", str(path), "--id", "empty"), "no rows")


@pytest.mark.parametrize("poison", ["pytorch_model.bin", "modeling_evil.py", "auto_map"])
def test_a_model_folder_that_could_run_code_is_refused(
    embedded_platform: Platform, tmp_path: Path, poison: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    if poison == "auto_map":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    else:
        (folder / poison).write_bytes(b"x")
    refused(embedded_platform.run("models", "import-base", str(folder), "--id", "evil"), poison)


def with_token(platform: Platform, token: str) -> subprocess.CompletedProcess[str]:
    env = {"TUNESMITH_ADDRESS": platform.address, "TUNESMITH_CONFIG_DIR": "/nonexistent"}
    if token:
        env["TUNESMITH_TOKEN"] = token
    return subprocess.run(
        [str(BIN / "tunesmith"), "list"],
        env=clean_environment(env),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_a_missing_token_says_how_to_get_one(embedded_platform: Platform) -> None:
    refused(with_token(embedded_platform, ""), "TUNESMITH_TOKEN")


def test_a_wrong_token_is_refused(embedded_platform: Platform) -> None:
    refused(with_token(embedded_platform, "ts_wrong"), "token")


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    env = {"TUNESMITH_ADDRESS": address, "TUNESMITH_TOKEN": "x", "TUNESMITH_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run(
        [str(BIN / "tunesmith"), "list"],
        env=clean_environment(env),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    refused(done, address)
    assert done.returncode == 5


def test_an_oversized_body_is_refused_and_the_server_stays(embedded_platform: Platform) -> None:
    with embedded_platform.rest() as rest:
        answer = rest.post("/api/v1/projects/default/jobs", content=b"x" * (9 << 20))
        assert answer.status_code == 429
        assert answer.json()["reason"] == "MESSAGE_TOO_LARGE"
        assert rest.get("/api/v1/server").status_code == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "MESSAGE_MALFORMED"),
        (b'{"a": NaN}', "MESSAGE_MALFORMED"),
        (b'{"spec": {}, "spec": {}}', "MESSAGE_MALFORMED"),
        (b"[" * 100_000, "MESSAGE_MALFORMED"),
        (b'{"nope": 1}', "FIELD_INVALID"),
        (b'{"spec": {"training": {"seed": -1}}}', "FIELD_INVALID"),
        (
            b'{"spec": {"base_model": "a", "dataset": "b", "training": {"num_epochs": 1e999}}}',
            "FIELD_INVALID",
        ),
    ],
)
def test_bad_json_is_an_answer_not_a_crash(embedded_platform: Platform, body: bytes, reason: str) -> None:
    with embedded_platform.rest() as rest:
        answer = rest.post("/api/v1/projects/default/jobs", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["reason"] == reason


def up(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {"TUNESMITH_CONFIG_DIR": str(tmp_path / "config"), **env}
    command = [str(BIN / "tunesmith"), "up", "--data-dir", str(tmp_path / "data"), *arguments]
    return subprocess.run(
        command, env=clean_environment(settings), capture_output=True, text=True, timeout=180, check=False
    )


def test_a_port_in_use_is_named(embedded_platform: Platform, tmp_path: Path) -> None:
    port = embedded_platform.http.rpartition(":")[2]
    refused(up(tmp_path, "--port", port, "--grpc-port", "0"), port, "in use")


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, where the folder should be")
    refused(up(tmp_path, "--port", "0", "--grpc-port", "0"), str(tmp_path / "data"))
    (tmp_path / "file").write_text("")
    env = {"TUNESMITH_DATA_DIR": str(tmp_path / "file" / "below"), "TUNESMITH_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run(
        [str(BIN / "tunesmith"), "serve", "jobs"],
        env=clean_environment(env), capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    refused(done, "data_dir", "below", "TUNESMITH_DATA_DIR")


def test_a_second_platform_in_the_same_folder_is_refused(embedded_platform: Platform) -> None:
    refused(up(embedded_platform.root, "--port", "0", "--grpc-port", "0"), "another platform", "data")


def test_a_missing_nats_server_is_named_with_what_to_install(tmp_path: Path) -> None:
    # A Python that stands elsewhere, and nothing on the path: as where the wheel was never installed.
    code = "import sys; sys.executable = '/nonexistent/python'; import tunesmith.cli as c; sys.exit(c.main())"
    command = [sys.executable, "-c", code, "up", "--data-dir", str(tmp_path / "data"), "--port", "0"]
    env = clean_environment({"PATH": "/nonexistent", "TUNESMITH_CONFIG_DIR": str(tmp_path)})
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)
    refused(done, "nats-server", "pip install 'tunesmith[server]'")


def test_an_unknown_setting_is_refused_with_what_was_meant(tmp_path: Path) -> None:
    done = up(tmp_path, "--port", "0", "--grpc-port", "0", TUNESMITH_AGENT_SLOT="2")
    refused(done, "TUNESMITH_AGENT_SLOT", "TUNESMITH_AGENT_SLOTS")


def test_postgresql_down_at_start_is_named(embedded_platform: Platform, tmp_path: Path) -> None:
    url = f"postgresql://postgres:secret@127.0.0.1:{free_port()}/postgres"
    env = {"TUNESMITH_DATABASE_URL": url, "TUNESMITH_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [str(BIN / "tunesmith"), "serve", "jobs"],
        env=clean_environment(env), capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    refused(done, "database", "TUNESMITH_JOBS_DATABASE_URL")
    assert "secret" not in done.stderr


def test_an_upload_refused_while_its_client_is_silent_is_told_why(embedded_platform: Platform) -> None:
    answered = threading.Event()

    def parts() -> Iterator[blobs_pb2.UploadPartRequest]:
        yield blobs_pb2.UploadPartRequest(upload="a" * 26, offset=0, chunk=b"x")
        answered.wait(120)

    with grpc.insecure_channel(embedded_platform.address) as channel:
        stub = blobs_pb2_grpc.BlobServiceStub(channel)
        metadata = (("authorization", f"Bearer {embedded_platform.token}"),)
        try:
            with pytest.raises(grpc.RpcError) as caught:
                stub.UploadPart(parts(), metadata=metadata, timeout=60)
        finally:
            answered.set()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "no such upload" in str(caught.value.details())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB. Only root may mount one, and not in every container."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_blob_disk_refuses_the_upload_and_keeps_serving(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "p").mkdir()
    with embedded(tmp_path / "p", {"TUNESMITH_BLOBS_URL": str(small_disk)}) as platform:
        path = tmp_path / "big.jsonl"
        row = json.dumps({"text": "x" * 1000})
        path.write_text(f"{row}\n" * 4000)
        refused(platform.run("datasets", "import", str(path), "--id", "big"), "disk is full")
        path.write_text(f"{row}\n" * 10)
        assert platform.run("datasets", "import", str(path), "--id", "big").returncode == 0


def test_a_node_without_room_for_the_spool_fails_the_attempt_and_says_so(
    tmp_path: Path, small_disk: Path
) -> None:
    (tmp_path / "p").mkdir()
    with embedded(tmp_path / "p") as platform:
        platform.load_inputs()
        nodes = platform.root / "data" / "nodes"
        with platform.client() as client:
            (node,) = [n.node_id for n in client.nodes.list()]
            runs = nodes / node / "runs"
            subprocess.run(["mount", "--bind", str(small_disk), str(runs)], check=True)
            try:
                (small_disk / "ballast").write_bytes(b"x" * 900_000)
                content = {**spec(2000, checkpoint_every_steps=10), "retry": {"max_infra_retries": 0}}
                job = client.jobs.submit(content)
                done = wait_state(client, job.name, "FAILED")
                assert done.proto.failure.reason == "DISK_FULL"
                assert "free space" in done.proto.failure.remedy
            finally:
                subprocess.run(["umount", "-l", str(runs)], check=True)


def _fill(disk: Path) -> None:
    with suppress(OSError), (disk / "ballast").open("ab") as file:
        while True:
            file.write(b"x" * 4096)
            file.flush()


def test_a_start_on_a_full_disk_names_it(tmp_path: Path, small_disk: Path) -> None:
    _fill(small_disk)
    done = subprocess.run(
        [str(BIN / "tunesmith"), "up", "--data-dir", str(small_disk), "--port", "0", "--grpc-port", "0"],
        env=clean_environment({"TUNESMITH_CONFIG_DIR": str(tmp_path)}),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    refused(done, "the disk is full", str(small_disk), "free some space")


def test_the_bus_is_started_again_when_its_full_disk_has_room(tmp_path: Path, small_disk: Path) -> None:
    _fill(small_disk)
    (tmp_path / "p").mkdir()
    with embedded(tmp_path / "p") as platform:
        up, folder = platform.processes["up"], platform.root / "data" / "nats"

        def bus() -> list[psutil.Process]:
            return children(up.pid, "nats.conf")

        subprocess.run(["mount", "--bind", str(small_disk), str(folder)], check=True)
        try:
            bus()[0].kill()
            wait_for(lambda: "loop=nats-server" in up.log.read_text(), 90, "a start without room")
            assert up.alive()
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        wait_for(lambda: bool(bus()), 90, "the next start")
        with platform.rest() as rest:
            wait_for(
                lambda: rest.get("/readyz").status_code == httpx.codes.OK, 90, "the platform to be ready"
            )
