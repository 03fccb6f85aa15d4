"""Live streams and the doors beside them: SSE that goes on, the fleet in one, health, tokens that end."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.jobs import wait_state
from tests.support.platform import Platform, embedded
from tests.support.processes import BIN, Process, wait_for
from tunesmith import Client
from tunesmith.errors import ResourceExhausted, Unauthenticated
from tunesmith.status import from_rpc_error

VIEWER = "viewer-test-token"
# Refused by the registry within milliseconds: enough of a job to be watched to its end.
DOOMED = {"experiment": "live", "base_model": "none", "dataset": "none"}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with embedded(tmp_path_factory.mktemp("live")) as found, found.client() as client:
        wait_for(client.nodes.list, 60, "the node has joined")
        yield found


def messages(stream: httpx.Response) -> Iterator[tuple[str, int, Any]]:
    """Yields (event, id, data) of a stream of server-sent events."""
    assert stream.headers["content-type"].startswith("text/event-stream"), stream.read()
    fields: dict[str, str] = {}
    for line in stream.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            yield fields["event"], int(fields.get("id", 0)), json.loads(fields["data"])
            fields = {}


def submit(platform: Platform) -> str:
    with platform.rest() as rest:
        answer = rest.post("/api/v1/projects/default/jobs", json={"spec": DOOMED})
        assert answer.status_code == 200, answer.text
        name: str = answer.json()["job"]["name"]
    with platform.client() as client:
        wait_state(client, name, "FAILED")
    return name


def test_a_stream_of_a_job_ends_with_the_job(platform: Platform) -> None:
    name = submit(platform)
    with platform.rest() as rest, rest.stream("GET", f"/api/v1/{name}:watch") as stream:
        found = list(messages(stream))
    assert [event for event, _, _ in found] == ["message", "end"]
    _, revision, data = found[0]
    assert data["job"]["state"] == "JOB_STATE_FAILED"
    assert int(data["revision"]) == revision > 0


def test_a_stream_goes_on_behind_the_last_event_that_was_heard(platform: Platform) -> None:
    path = "/api/v1/projects/default/jobs:watch"
    with platform.rest() as rest:
        with rest.stream("GET", path) as stream:
            _, heard, _ = next(messages(stream))
        missed = submit(platform)  # while nobody listens
        with rest.stream("GET", path, headers={"last-event-id": str(heard)}) as stream:
            _, reached, data = next(messages(stream))
        assert missed in {job["name"] for job in data["jobs"]}
        with rest.stream("GET", path, headers={"last-event-id": str(reached)}) as stream:
            _, again, data = next(messages(stream))
        assert (again >= reached, missed in {job["name"] for job in data["jobs"]}) == (True, False)


def test_a_last_event_id_that_is_no_revision_is_refused(platform: Platform) -> None:
    with platform.rest() as rest:
        answer = rest.get("/api/v1/projects/default/jobs:watch", headers={"last-event-id": "then"})
    assert (answer.status_code, answer.json()["field"]) == (400, "Last-Event-ID")


def test_the_fleet_is_watched_as_one_and_goes_on_by_revision(platform: Platform) -> None:
    with platform.client() as client:
        snapshot = next(updates := client.fleet.watch())
        updates.close()  # type: ignore[attr-defined]
        assert [node.node_id for node in snapshot.nodes] == [node.node_id for node in client.nodes.list()]
        missed = submit(platform)
        for update in client.fleet.watch(from_revision=snapshot.revision):
            if missed in {job.name for job in update.jobs}:
                break
        assert [node.name for node in client.fleet.get().nodes] == [node.name for node in snapshot.nodes]


def test_health_and_reflection_need_no_token(platform: Platform) -> None:
    with grpc.insecure_channel(platform.address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([request]), timeout=60
        )
        names = {service.name for service in answer.list_services_response.service}
        assert "tunesmith.api.jobs.v1.JobService" in names


def test_an_oversized_grpc_message_is_refused_and_the_server_stays(platform: Platform) -> None:
    metadata = (("authorization", f"Bearer {platform.token}"),)
    with grpc.insecure_channel(platform.address) as channel:
        call: Any = channel.unary_unary("/tunesmith.api.jobs.v1.JobService/CreateJob")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"x" * (17 << 20), metadata=metadata, timeout=60)
    assert isinstance(from_rpc_error(caught.value), ResourceExhausted)
    with platform.client() as client:
        assert client.fleet.server().role == "admin"


def test_impossible_paths_are_the_page_and_no_error(platform: Platform) -> None:
    with httpx.Client(base_url=platform.http, trust_env=False, timeout=60) as client:
        for path in ("/%00", "/a%00b.js", "/" + "x" * 5000):
            assert client.get(path).status_code == 200, path


def test_the_token_is_shown_at_the_first_start_only_and_an_emptied_setting_ends_its_token(
    tmp_path: Path,
) -> None:
    def allowed(platform: Platform) -> bool:
        try:
            with Client(platform.address, VIEWER) as client:
                return client.fleet.server().role == "viewer"
        except Unauthenticated:
            return False

    with embedded(tmp_path, {"TUNESMITH_GATEWAY_VIEWER_TOKEN": VIEWER}) as platform:
        first = wait_for(lambda: re.search(r"#token=(\S+)", platform.processes["up"].tail()), 60, "the token")
        assert first[1] == platform.token
        assert allowed(platform)
    shown = platform.processes["up"].log.read_text()
    with embedded(tmp_path) as platform:
        wait_for(lambda: "Sign in" in (later := up_log(platform)[len(shown) :]) and later, 60, "the address")
        assert platform.token not in up_log(platform)[len(shown) :]
        assert not allowed(platform)


def up_log(platform: Platform) -> str:
    return platform.processes["up"].log.read_text()


def test_two_roles_with_one_token_are_refused(tmp_path: Path) -> None:
    env = {"TUNESMITH_GATEWAY_VIEWER_TOKEN": "same", "TUNESMITH_GATEWAY_DEVELOPER_TOKEN": "same"}
    command = [
        str(BIN / "tunesmith"),
        "up",
        "--data-dir",
        str(tmp_path / "d"),
        "--port",
        "0",
        "--grpc-port",
        "0",
    ]
    up = Process("up", command, tmp_path / "up.log", {"TUNESMITH_CONFIG_DIR": str(tmp_path / "c"), **env})
    wait_for(lambda: not up.alive(), 180, "it gives up")
    assert up.stop() == 1
    assert "TUNESMITH_GATEWAY_DEVELOPER_TOKEN" in up.tail()
    assert "same token" in up.tail()
    assert "Traceback" not in up.tail()
