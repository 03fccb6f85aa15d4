"""Nothing is open by default: every route and rpc of the contract, each role, foreign hosts and origins."""

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from tests.support.platform import Platform, embedded
from tunesmith.status import from_rpc_error
from tunesmith_gateway import transcode
from tunesmith_gateway.main import SERVICES
from tunesmith_kit import access

VIEWER, DEVELOPER = "viewer-test-token", "developer-test-token"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    env = {"TUNESMITH_GATEWAY_VIEWER_TOKEN": VIEWER, "TUNESMITH_GATEWAY_DEVELOPER_TOKEN": DEVELOPER}
    with embedded(tmp_path_factory.mktemp("gateway"), env) as found:
        yield found


def plain(platform: Platform, token: str = "", **headers: str) -> httpx.Client:
    if token:
        headers["authorization"] = f"Bearer {token}"
    return httpx.Client(base_url=platform.http, headers=headers, trust_env=False, timeout=60)


def path_of(route: transcode.Route) -> str:
    return "/api/v1/" + transcode.VARIABLE.sub(
        lambda m: (m.group(2) or "x").replace("*", "x"), route.rpc.http_path
    )


@pytest.mark.parametrize("token", ["", "wrong"])
def test_every_route_answers_401_without_a_good_token(platform: Platform, token: str) -> None:
    routes = transcode.routes(SERVICES)
    assert len(routes) > 20
    with plain(platform, token) as client:
        answers = {path_of(r): client.request(r.rpc.http_method, path_of(r)).status_code for r in routes}
        answers["/api/v1/blobs"] = client.post("/api/v1/blobs", content=b"x").status_code
        answers["/metrics"] = client.get("/metrics").status_code
    assert {path: code for path, code in answers.items() if code != 401} == {}


async def test_every_rpc_refuses_a_caller_without_token(platform: Platform) -> None:
    from google.protobuf import descriptor_pool

    open_rpcs = []
    async with grpc.aio.insecure_channel(platform.address) as channel:
        for service in SERVICES:
            for method in descriptor_pool.Default().FindServiceByName(service).methods:
                rpc = access.describe(method)
                assert rpc.permission, f"{rpc.path} declares no permission"
                try:
                    await _call(channel, rpc)
                    open_rpcs.append(rpc.path)
                except grpc.aio.AioRpcError as error:
                    if from_rpc_error(error).reason != "TOKEN_MISSING":
                        open_rpcs.append(rpc.path)
    assert open_rpcs == []


async def _call(channel: grpc.aio.Channel, rpc: access.Rpc) -> None:
    raw = {"request_serializer": None, "response_deserializer": None}
    if rpc.client_streaming:
        await channel.stream_unary(rpc.path, **raw)(iter([b""]), timeout=60)  # type: ignore[arg-type]
    elif rpc.server_streaming:
        await channel.unary_stream(rpc.path, **raw)(b"", timeout=60).read()  # type: ignore[arg-type]
    else:
        await channel.unary_unary(rpc.path, **raw)(b"", timeout=60)  # type: ignore[arg-type]


def test_a_viewer_reads_and_cannot_write(platform: Platform) -> None:
    with plain(platform, VIEWER) as client:
        assert client.get("/api/v1/projects/default/jobs").status_code == 200
        answer = client.post(
            "/api/v1/projects/default/jobs", json={"spec": {"base_model": "a", "dataset": "b"}}
        )
        assert answer.status_code == 403
        assert answer.json()["value"] == "jobs.write"


def test_a_developer_submits_but_cannot_pose_as_a_node(platform: Platform) -> None:
    with plain(platform, DEVELOPER) as client:
        answer = client.post(
            "/api/v1/projects/default/jobs", json={"spec": {"base_model": "a", "dataset": "b"}}
        )
        assert answer.status_code == 200
    channel = grpc.insecure_channel(platform.address)
    call: Any = channel.unary_unary("/tunesmith.api.nodes.v1.NodeService/RegisterNode")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", metadata=(("authorization", f"Bearer {DEVELOPER}"),), timeout=60)
    assert from_rpc_error(caught.value).reason == "PERMISSION_MISSING"
    channel.close()


def test_another_hosts_name_is_refused(platform: Platform) -> None:
    with plain(platform, platform.token, host="evil.example") as client:
        answer = client.get("/api/v1/server")
    assert (answer.status_code, answer.json()["reason"]) == (403, "ORIGIN_REFUSED")


def test_another_sites_page_cannot_write(platform: Platform) -> None:
    with plain(platform, platform.token, origin="https://evil.example") as client:
        answer = client.post("/api/v1/projects/default/jobs", json={})
    assert (answer.status_code, answer.json()["reason"]) == (403, "ORIGIN_REFUSED")


def test_every_answer_carries_the_security_headers(platform: Platform) -> None:
    with plain(platform) as client:
        for path in ("/", "/healthz", "/api/v1/server", "/jobs/x"):
            headers = client.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"], path
            assert headers["x-content-type-options"] == "nosniff"


def test_a_path_cannot_leave_the_pages_folder(platform: Platform) -> None:
    with plain(platform) as client:
        for path in ("/..%2fapp.py", "/%2e%2e/app.py", "/assets/..%2f..%2fapp.py"):
            answer = client.get(path)
            assert "import" not in answer.text, path


def test_no_token_is_kept_in_the_clear(platform: Platform) -> None:
    kept = (platform.root / "data" / "gateway.db").read_bytes() + (
        platform.root / "data" / "gateway.db-wal"
    ).read_bytes()
    assert platform.token.encode() not in kept
    assert VIEWER.encode() not in kept
    assert (platform.root / "data" / "secrets.json").stat().st_mode & 0o077 == 0


def test_the_openapi_document_describes_every_route(platform: Platform) -> None:
    with plain(platform) as client:
        document = client.get("/api/v1/openapi.json").json()
    operations = {(m.upper(), o["operationId"]) for p in document["paths"].values() for m, o in p.items()}
    assert operations == {(r.rpc.http_method, r.rpc.descriptor.name) for r in transcode.routes(SERVICES)}
    assert all(o["description"] for p in document["paths"].values() for o in p.values())
    known = document["components"]["schemas"]
    assert "Learning" in str(known["jobs.v1.TrainingSpec"]) or "learning rate" in str(
        known["jobs.v1.TrainingSpec"]
    )


def test_times_stand_in_the_query_as_they_do_in_bodies(platform: Platform) -> None:
    with plain(platform, platform.token) as client:
        path = "/api/v1/nodes/somewhere/series"
        good = client.get(path, params={"start_time": "2026-01-31T12:00:00Z", "keys": "cpu/percent"})
        assert good.status_code == 200, good.text
        bad = client.get(path, params={"start_time": "soon"})
        assert (bad.status_code, bad.json()["field"]) == (400, "start_time")
        assert "2026-01-31T12:00:00Z" in bad.json()["remedy"]
