"""What is deployed is what the code knows: compose, Dockerfile, NATS and Prometheus, without a container."""

import re
import subprocess
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import yaml

from tests.house import tables
from tests.house.tables import ROOT
from tests.support.processes import BIN
from tunesmith_kit.host import EMBEDDED, find_service
from tunesmith_kit.settings import PREFIX, load

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
SECRET = re.compile(r"TOKEN|PASSWORD|SECRET")
LEAST_UID = 10_000


@cache
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    return loaded


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"][name]
    return found


def stages() -> dict[str, str]:
    """Stages of the Dockerfile with the image or stage each begins from."""
    found = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    return {name: base for base, name in found}


def filled(text: object) -> str:
    """A value of compose as it is with every variable without a default set to a token."""
    variable = re.compile(r"\$\{\w+(?::-([^}]*)|:\?[^}]*)?\}")
    return variable.sub(lambda found: "ts_1" if found[1] is None else found[1], str(text))


def run(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=env, check=False)


def test_compose_file_is_valid() -> None:
    tool = str(BIN / "check-jsonschema")
    done = run(tool, "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_dockerfile_is_clean() -> None:
    done = run(str(BIN / "hadolint"), "--no-color", str(DOCKERFILE))
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_service_has_a_target_that_runs_it(name: str) -> None:
    build = service(name)["build"]
    assert (build["context"], build["dockerfile"]) == (".", "deploy/Dockerfile")
    assert build["target"] == name
    stage = DOCKERFILE.read_text("utf-8").split(f" AS {name}\n")[1].split("\nFROM ")[0]
    assert f'CMD ["{name}"]' in stage


def test_stages_come_from_stages_or_pinned_images() -> None:
    found = stages()
    loose = {base for base in found.values() if base not in found and not re.search(r":\d", base)}
    assert loose == set()


def test_dockerfile_copies_only_what_exists_and_enters_the_context() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for sources in re.findall(r"^COPY ((?!--from).*) \S+$", DOCKERFILE.read_text("utf-8"), re.MULTILINE):
        for name in sources.split():
            assert (ROOT / name).exists(), name
            assert any(name == each or name.startswith(f"{each}/") for each in let_in), name


@pytest.mark.parametrize("name", EMBEDDED)
def test_settings_of_a_service_are_understood_by_it(name: str) -> None:
    cls = find_service(name).settings
    env = {key: filled(value) for key, value in service(name)["environment"].items()}
    known = {item.name.upper() for item in fields(cls)}
    for key in env:
        field = key.removeprefix(PREFIX).removeprefix(f"{name.upper()}_")
        assert key.startswith(PREFIX), key
        assert field in known, f"{key} is no setting of {name}"
    loaded = load(cls, name, env=env)
    assert loaded.nats_token == "ts_1"


def test_settings_of_the_image_are_known_to_every_service() -> None:
    named = set(re.findall(r"\b(TUNESMITH_\w+)=", DOCKERFILE.read_text("utf-8")))
    assert named
    shared = set(re.findall(r"`(TUNESMITH_\w+)`", tables.settings()))
    assert named <= shared


def test_addresses_between_services_are_where_they_listen() -> None:
    ports = {name: f"{PREFIX}{name.upper()}_PORT" for name in EMBEDDED if name != "agent"}
    listens = {f"{name}:{service(name)['environment'][port]}" for name, port in ports.items()}
    told = {**service("gateway")["environment"], **service("agent")["environment"]}
    wanted = {value for key, value in told.items() if key.endswith("_ADDRESS")}
    assert wanted == listens


def test_every_secret_comes_from_outside_and_has_no_default() -> None:
    for name, content in compose()["services"].items():
        for key, value in (content.get("environment") or {}).items():
            if SECRET.search(key):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", str(value)), f"{name}: {key}"


def test_an_agent_is_given_no_way_to_the_database() -> None:
    agent = service("agent")
    assert not set(agent["networks"]) & set(service("postgres")["networks"])
    assert {"TUNESMITH_INTERNAL_TOKEN", "TUNESMITH_DATABASE_URL"}.isdisjoint(agent["environment"])


@pytest.mark.parametrize("name", list(compose()["services"]))
def test_every_container_is_hardened_limited_and_watched(name: str) -> None:
    found = service(name)
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in found["security_opt"]
    assert found["mem_limit"]
    assert found["pids_limit"] > 0
    assert found["healthcheck"]["test"][0] == "CMD"
    assert found["restart"] == "unless-stopped"
    user = int(found["user"].split(":")[0])
    assert user >= LEAST_UID if "build" in found else user > 0
    for port in found.get("ports", ()):
        assert re.match(r"(127\.0\.0\.1|\$\{TUNESMITH_BIND:-127\.0\.0\.1\}):", port), "open to the world"


def test_volumes_lie_on_folders_that_the_image_gives_to_its_user() -> None:
    made = re.search(r"install -d -o (\d+).*?((?: /\S+)+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    assert made is not None
    folders = made[2].split()
    for name, content in compose()["services"].items():
        if "build" in content:
            assert content["user"].split(":")[0] == made[1], name
            for volume in content.get("volumes", ()):
                assert volume.split(":")[1] in folders


@pytest.mark.parametrize("name", ["nats.conf", "cluster.conf"])
def test_nats_takes_its_configuration(name: str) -> None:
    env = {
        "TUNESMITH_NATS_TOKEN": "ts_1",
        "NATS_NAME": "nats-1",
        "NATS_CLUSTER_PASSWORD": "cluster1",
        "NATS_ROUTES": '["nats://cluster:cluster1@nats-1:6222"]',
    }
    done = run(str(BIN / "nats-server"), "-t", "-c", str(ROOT / "deploy" / "nats" / name), env=env)
    assert done.returncode == 0, done.stderr


def test_prometheus_watches_every_service_where_it_answers() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text("utf-8"))
    (found,) = config["scrape_configs"][0]["dns_sd_configs"]
    assert sorted(found["names"]) == sorted(EMBEDDED)
    assert f"TUNESMITH_HTTP_PORT={found['port']}" in DOCKERFILE.read_text("utf-8")
    assert [(ROOT / "deploy" / "prometheus" / name).exists() for name in config["rule_files"]] == [True]


def alerts() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text("utf-8"))
    return [rule for group in loaded["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alert_asks_for_metrics_that_exist_and_says_what_to_do(rule: dict[str, Any]) -> None:
    known = set(re.findall(r"`(tunesmith_\w+)`", tables.metrics()))
    asked = re.findall(r"tunesmith_\w+", rule["expr"].replace('job="tunesmith"', ""))
    assert {re.sub(r"_(count|sum|bucket)$", "", name) for name in asked} <= known
    assert asked or rule["expr"].startswith("up{")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["action"]
    for name in re.findall(r"tunesmith ([a-z]+)", rule["annotations"]["action"]):
        assert f"`tunesmith {name}`" in tables.commands()


def test_alerts_stand_in_the_manual() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert [rule["alert"] for rule in alerts() if rule["alert"] not in manual] == []


def test_python_of_the_image_is_one_the_project_takes() -> None:
    (version,) = set(re.findall(r"FROM python:(\d+\.\d+)-", DOCKERFILE.read_text("utf-8")))
    asked = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert asked is not None
    assert tuple(map(int, version.split("."))) >= tuple(map(int, asked[1].split(".")))
