"""REST as its own document describes it: ETags, streams that go on, no answer the schema does not know."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from tests.support.platform import embedded
from tests.support.processes import wait_for


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with embedded(tmp_path_factory.mktemp("rest")) as platform, platform.rest() as client:
        yield client


def begin(rest: httpx.Client) -> str:
    answer = rest.post("/api/v1/projects/default/externalRuns", json={"experiment": "rest"})
    assert answer.status_code == 200, answer.text
    return f"/api/v1/{answer.json()['job']['name']}"


def test_a_get_is_answered_in_short_while_nothing_changed(rest: httpx.Client) -> None:
    run = begin(rest)
    first = rest.get(run)
    tag = first.headers["etag"]
    assert tag.startswith(f'"{first.json()["job"]["revision"]}-')
    for known in (tag, f'"other", W/{tag}', "*"):
        again = rest.get(run, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    rest.post(f"{run}:renew", json={"epoch": "1", "progress": {"step": "5"}})
    changed = rest.get(run, headers={"if-none-match": tag})
    assert (changed.status_code, changed.json()["job"]["progress"]["step"]) == (200, "5")
    assert changed.headers["etag"] != tag
    listed = rest.get("/api/v1/projects/default/jobs")
    same = rest.get("/api/v1/projects/default/jobs", headers={"if-none-match": listed.headers["etag"]})
    assert same.status_code == 304


def test_a_change_upon_an_old_form_is_refused(rest: httpx.Client) -> None:
    run = begin(rest)
    tag = rest.get(run).headers["etag"]
    rest.patch(run, json={"labels": {"by": "somebody else"}})
    stale = rest.patch(run, json={"labels": {"by": "me"}}, headers={"if-match": tag})
    assert (stale.status_code, stale.json()["status"], stale.json()["reason"]) == (412, 412, "REVISION_STALE")
    fresh = rest.get(run).headers["etag"]
    assert rest.patch(run, json={"labels": {"by": "me"}}, headers={"if-match": fresh}).status_code == 200
    odd = rest.patch(run, json={"labels": {"by": "me"}}, headers={"if-match": '"what"'})
    assert (odd.status_code, odd.json()["field"]) == (400, "If-Match")


def test_a_stream_goes_on_after_the_last_event_seen(rest: httpx.Client) -> None:
    run = begin(rest)
    (first,) = events(rest, f"{run}:watch", 1)
    rest.post(f"{run}:finish", json={"epoch": "1"})
    (last,) = events(rest, f"{run}:watch", 1, {"last-event-id": first["id"]})
    assert json.loads(last["data"])["job"]["state"] == "JOB_STATE_SUCCEEDED"
    assert int(last["id"]) > int(first["id"])
    odd = rest.get(f"{run}:watch", headers={"last-event-id": "yesterday"})
    assert (odd.status_code, odd.json()["field"]) == (400, "Last-Event-ID")


def events(
    rest: httpx.Client, path: str, number: int, headers: dict[str, str] | None = None
) -> list[dict[str, str]]:
    """Returns the first messages of a stream, each with its fields."""
    found: list[dict[str, str]] = []
    with rest.stream("GET", path, headers=headers) as answer:
        now: dict[str, str] = {}
        for line in answer.iter_lines():
            if line:
                name, _, text = line.partition(": ")
                now[name] = text
            elif now:
                if now.get("event") == "message" and len(now["data"]) > 40:  # shorter ones are heartbeats
                    found.append(now)
                now = {}
            if len(found) == number:
                return found
    return found


def test_every_get_answers_as_the_document_says(rest: httpx.Client) -> None:
    """Each GET is asked for something that is there as far as we know, for nothing, and for nonsense."""
    document = rest.get("/api/v1/openapi.json").json()
    run = begin(rest)
    job = run.rsplit("/", 1)[1]
    wait_for(
        lambda: rest.post(f"{run}/records", json={"epoch": "1", "first_seq": "1", "records": [
            {"step": "1", "values": {"train/loss": "NaN"}}]}).status_code == 200 or None,
        60, "a point is stored",
    )  # fmt: skip
    asked = 0
    for path, operations in document["paths"].items():
        operation = operations.get("get")
        if operation is None or "text/event-stream" in operation["responses"]["200"]["content"]:
            continue
        for project, name in (
            ("default", job),
            ("default", "nothing"),
            ("-", "a"),
            ("%00", "%2e%2e"),
            ("é", "🙂"),
            ("default", "a%0Ab"),
        ):
            filled = path.replace("{project}", project)
            while "{" in filled:
                filled = filled[: filled.index("{")] + name + filled[filled.index("}") + 1 :]
            answer = rest.get(f"/api/v1{filled}")
            check(answer, operation, document)
            asked += 1
    assert asked > 200


@pytest.mark.parametrize("value", ["-1", "99999999999999999999", "NaN", "", "%00"])
def test_nonsense_in_the_query_is_refused_with_its_place(rest: httpx.Client, value: str) -> None:
    document = rest.get("/api/v1/openapi.json").json()
    for path, operations in document["paths"].items():
        operation = operations.get("get")
        if operation is None or "text/event-stream" in operation["responses"]["200"]["content"]:
            continue
        filled = path.replace("{project}", "default")
        while "{" in filled:
            filled = filled[: filled.index("{")] + "nothing" + filled[filled.index("}") + 1 :]
        names = [each["name"] for each in operation["parameters"] if each["in"] == "query"]
        for name in names:
            check(rest.get(f"/api/v1{filled}?{name}={value}"), operation, document)


def test_every_body_that_does_not_fit_is_refused(rest: httpx.Client) -> None:
    """No POST, PUT or PATCH breaks on a body of the wrong shape, however wrong."""
    document = rest.get("/api/v1/openapi.json").json()
    bodies = (b"", b"{", b"[]", b"null", b'{"nothing": 1}', b"\xff", b'{"name": {"a": [[[[]]]]}}', b'"x"')
    for path, operations in document["paths"].items():
        for method in ("post", "put", "patch", "delete"):
            operation = operations.get(method)
            if operation is None or "text/event-stream" in operation["responses"]["200"]["content"]:
                continue
            filled = path.replace("{project}", "default")
            while "{" in filled:
                filled = filled[: filled.index("{")] + "nothing" + filled[filled.index("}") + 1 :]
            for body in bodies:
                answer = rest.request(method.upper(), f"/api/v1{filled}", content=body)
                check(answer, operation, document)


def check(answer: httpx.Response, operation: dict[str, Any], document: dict[str, Any]) -> None:
    """An answer has a status, a type and a form that the document names, and is no fault of ours."""
    where = f"{answer.request.method} {answer.request.url} {answer.text[:500]}"
    # 503 is what rpcs answer whose part of the platform is not there (no node that could chat).
    assert answer.status_code < 500 or answer.status_code == 503, where
    described = operation["responses"].get(str(answer.status_code), operation["responses"]["default"])
    media = answer.headers.get("content-type", "").split(";")[0]
    assert media in described["content"], where
    schema = described["content"][media]["schema"]
    if media == "application/octet-stream":
        return
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
