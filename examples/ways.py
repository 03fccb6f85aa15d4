"""Two ways to do the same on the platform, for the walkthrough: with the client, or with HTTP and JSON alone.

Both answer with plain dictionaries, named as in the contract, and raise `Refused` where the platform says no.
"""

import hashlib
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from tunesmith import Client, TunesmithError
from tunesmith.api.registry.v1 import stages_pb2

PARENT = "projects/default"
Facts = dict[str, Any]
_DONE = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED")


class Refused(Exception):
    """The platform said no: the reason of its table of errors, and a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message = reason, message


class Way(Protocol):
    """What the walkthrough does, however it is done. Names are resource names."""

    def import_base(self, folder: Path, base_model_id: str) -> Facts:
        """Brings a base model in."""

    def import_data(self, file: Path, dataset_id: str) -> Facts:
        """Brings a dataset in; returns its version."""

    def statistics(self, version: str, base_model_id: str) -> Facts:
        """What is in a version, with token lengths under a base model."""

    def rows(self, version: str, base_model_id: str) -> list[Facts]:
        """The first rows as training sees them."""

    def run(self, spec: Mapping[str, Any]) -> Facts:
        """Submits a job and returns it at its end."""

    def evaluation(self, name: str) -> Facts:
        """The scores an evaluation found."""

    def set_gates(self, model: str, gates: list[Facts]) -> None:
        """What must hold before a version of the model goes to production."""

    def promote(self, version: str) -> Facts:
        """Moves a version to production."""

    def ask(self, targets: list[str], question: str) -> list[str]:
        """The likeliest answers of some targets."""

    def download(self, version: str, to: Path) -> None:
        """Writes a version as a tar archive."""

    def verify(self, version: str) -> tuple[bool, list[Facts]]:
        """Whether all is as it was, and what is not."""


class Sdk:
    """The way with the client for Python."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def import_base(self, folder: Path, base_model_id: str) -> Facts:
        return _plain(self._client.models.import_base(folder, base_model_id, license="Apache-2.0"))

    def import_data(self, file: Path, dataset_id: str) -> Facts:
        return _plain(self._client.datasets.import_file(file, dataset_id).version)

    def statistics(self, version: str, base_model_id: str) -> Facts:
        return _plain(self._client.datasets.statistics(version, base_model=base_model_id))

    def rows(self, version: str, base_model_id: str) -> list[Facts]:
        rows = self._client.datasets.rows(version, base_model=base_model_id, page_size=3)
        return [_plain(next(rows)) for _ in range(3)]

    def run(self, spec: Mapping[str, Any]) -> Facts:
        return _plain(self._client.jobs.submit(spec).wait(600).proto)

    def evaluation(self, name: str) -> Facts:
        return _plain(self._client.evaluations.get(name))

    def set_gates(self, model: str, gates: list[Facts]) -> None:
        policy = ParseDict({"gates": gates}, stages_pb2.ModelPolicy())
        self._client.versions.set_policy(policy, model.rpartition("/")[2])

    def promote(self, version: str) -> Facts:
        try:
            return _plain(self._client.models.set_stage(version, "production"))
        except TunesmithError as error:
            raise Refused(error.reason, error.message) from error

    def ask(self, targets: list[str], question: str) -> list[str]:
        texts = [""] * len(targets)
        for response in self._client.chat.stream(targets, question, max_new_tokens=32):
            texts[response.target] += response.delta
        return texts

    def download(self, version: str, to: Path) -> None:
        self._client.exports.download(version, to)

    def verify(self, version: str) -> tuple[bool, list[Facts]]:
        return _verdict(_plain(answer) for answer in self._client.lineage.verify(version))


class Rest:
    """The way with HTTP and JSON alone, as `curl` would."""

    def __init__(self, http: str, token: str) -> None:
        self._http, self._token = http, token

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Facts:
        """One request of the API; `body` is JSON, or bytes as they are."""
        with self._open(method, path, body, query) as answer:
            facts: Facts = json.loads(answer.read())
            return facts

    def events(self, method: str, path: str, body: Any = None) -> Iterator[Facts]:
        """What a stream of server-sent events says."""
        with self._open(method, path, body, {}) as answer:
            kind = ""
            for raw in answer:
                line = raw.decode().rstrip("\n")
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: ") and kind != "end":
                    facts = json.loads(line[6:])
                    if kind == "error":
                        raise Refused(facts["reason"], facts["detail"])
                    yield facts

    def _open(self, method: str, path: str, body: Any, query: Mapping[str, Any]) -> Any:
        url = f"{self._http}/api/v1/{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"authorization": f"Bearer {self._token}"}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None and data is not body:
            headers["content-type"] = "application/json"
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=300)
        except urllib.error.HTTPError as error:
            said = json.loads(error.read())
            raise Refused(said["reason"], said["detail"]) from error

    def import_base(self, folder: Path, base_model_id: str) -> Facts:
        paths = [path for path in sorted(folder.iterdir()) if path.name != "manifest.json"]
        files = [self._upload(path) for path in paths]
        body = {"base_model_id": base_model_id, "files": files, "license": "Apache-2.0", **_once()}
        base: Facts = self.call("POST", f"{PARENT}/baseModels:import", body)["base_model"]
        return base

    def _upload(self, path: Path) -> Facts:
        data = path.read_bytes()
        digest = self.call("POST", "blobs", data)["digest"]
        assert digest == hashlib.sha256(data).hexdigest(), "the store names content by its SHA-256"
        return {"path": path.name, "size_bytes": len(data), "sha256": digest}

    def import_data(self, file: Path, dataset_id: str) -> Facts:
        digest = self._upload(file)["sha256"]
        body = {"dataset_id": dataset_id, "source_digest": digest, "source": file.name, **_once()}
        version: Facts = self.call("POST", f"{PARENT}/datasets:import", body)["version"]
        return version

    def statistics(self, version: str, base_model_id: str) -> Facts:
        while True:
            told = self.call("GET", f"{version}/statistics", base_model=base_model_id)
            if told["state"] != "STATISTICS_STATE_COMPUTING":
                found: Facts = told["statistics"]
                return found
            time.sleep(0.2)

    def rows(self, version: str, base_model_id: str) -> list[Facts]:
        answer = self.call("GET", f"{version}/rows", base_model=base_model_id, page_size=3)
        rows: list[Facts] = answer["rows"]
        return rows

    def run(self, spec: Mapping[str, Any]) -> Facts:
        job = self.call("POST", f"{PARENT}/jobs", {"spec": spec, **_once()})["job"]
        while job["state"] not in _DONE:
            time.sleep(0.5)
            job = self.call("GET", job["name"])["job"]
        found: Facts = job
        return found

    def evaluation(self, name: str) -> Facts:
        found: Facts = self.call("GET", name)["evaluation"]
        return found

    def set_gates(self, model: str, gates: list[Facts]) -> None:
        self.call("PUT", f"{model}:policy", {"policy": {"gates": gates}, **_once()})

    def promote(self, version: str) -> Facts:
        body = {"stage": "MODEL_STAGE_PRODUCTION", **_once()}
        moved: Facts = self.call("POST", f"{version}:setStage", body)["version"]
        return moved

    def ask(self, targets: list[str], question: str) -> list[str]:
        texts = [""] * len(targets)
        messages = [{"role": "user", "content": question}]
        body = {"targets": targets, "messages": messages, "parameters": {"max_new_tokens": 32}}
        for response in self.events("POST", f"{PARENT}:chat", body):
            texts[response["target"]] += response["delta"]
        return texts

    def download(self, version: str, to: Path) -> None:
        with self._open("GET", f"{version}:download", None, {}) as answer, to.open("wb") as file:
            while data := answer.read(1 << 20):
                file.write(data)

    def verify(self, version: str) -> tuple[bool, list[Facts]]:
        return _verdict(self.events("GET", f"{version}:verify"))


def _plain(message: Message) -> Facts:
    facts: Facts = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return facts


def _once() -> Facts:
    return {"request_id": uuid.uuid4().hex}


def _verdict(answers: Iterator[Facts]) -> tuple[bool, list[Facts]]:
    damaged, intact = [], False
    for answer in answers:
        item = answer.get("item")
        if item and not item["intact"]:
            damaged.append(item)
        if answer["done"]:
            intact = answer["intact"]
    return intact, damaged
