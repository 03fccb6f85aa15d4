"""--output on every command that has --json; profiles; the doctor."""

import csv
import io
import json

import click
import pytest
import yaml

from tests.client.small_server import TOKEN, SmallServer
from tunesmith import Client, profile
from tunesmith.cli import COMMANDS, cli, doctor, main
from tunesmith.cli.output import flat, table_of
from tunesmith.errors import InvalidArgument


@pytest.fixture
def connected(server: SmallServer) -> SmallServer:
    profile.save(profile.Profile(address=server.address, token=TOKEN))
    return server


@pytest.fixture
def two_jobs(connected: SmallServer) -> list[str]:
    names = []
    with Client() as client:
        for team in ("search", 'a "b", c\nd'):
            spec = {"experiment": "demo", "base_model": "tiny", "dataset": "chat", "labels": {"team": team}}
            names.append(client.jobs.submit(spec).id)
    return names


def leaves(command: click.Command, path: str = "") -> list[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        return [
            found for name, below in command.commands.items() for found in leaves(below, f"{path} {name}")
        ]
    return [(path, command)]


def test_every_command_with_json_has_output_too() -> None:
    commands = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        commands += leaves(command, name)
    options = {path: {text for each in found.params for text in each.opts} for path, found in commands}
    with_json = {path for path, known in options.items() if "--json" in known}
    assert len(with_json) > 60
    assert {path for path in with_json if "--output" not in options[path]} == set()


def test_a_listing_says_the_same_in_each_format(
    two_jobs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = {}
    for form in ("json", "yaml", "csv", "table"):
        assert main(["list", "--output", form]) == 0
        outputs[form] = capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    assert capsys.readouterr().out == outputs["json"]
    said = json.loads(outputs["json"])
    assert {job["job_id"] for job in said} == set(two_jobs)
    assert yaml.safe_load(outputs["yaml"]) == said
    rows = list(csv.DictReader(io.StringIO(outputs["csv"])))
    assert [row["job_id"] for row in rows] == [job["job_id"] for job in said]
    assert {row["spec.labels.team"] for row in rows} == {"search", 'a "b", c\nd'}
    assert outputs["table"].startswith("JOB ")
    assert main(["list"]) == 0
    assert capsys.readouterr().out == outputs["table"], "a table is the default, and no call is remembered"


def test_one_thing_is_one_row_and_an_unknown_format_is_wrong_usage(
    two_jobs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", two_jobs[0], "--output", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["job_id"], row["active"]) == (two_jobs[0], "true")
    assert main(["list", "--output", "xml"]) == 2
    assert "'table', 'json', 'yaml', 'csv'" in capsys.readouterr().err
    assert main(["show", "nothing-here", "--output", "yaml"]) == 3


def test_rows_of_different_keys_share_their_columns() -> None:
    rows = [flat({"a": 1, "b": {"c": None}}), flat({"d": [1, {"e": "ä"}], "a": True, "f": []})]
    assert table_of(rows) == 'a,b.c,d,f\n1,,,\ntrue,,"[1, {""e"": ""ä""}]",\n'


def test_profiles_are_made_used_and_removed_and_never_tell_their_token(
    connected: SmallServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("other-secret\n"))
    wanted = [
        "profile",
        "set",
        "lab",
        "--address",
        "lab.example:7461",
        "--project",
        "vision",
        "--token-stdin",
    ]
    assert main(wanted) == 0
    assert profile.profile_path(name="lab").stat().st_mode & 0o777 == 0o600
    assert profile.resolve(name="lab").token == "other-secret"
    assert profile.resolve().token == TOKEN, "made is not in force"
    assert main(["profile", "use", "lab"]) == 0
    assert profile.resolve().project == "vision"
    monkeypatch.setenv("TUNESMITH_PROFILE", "default")
    assert profile.resolve().address == connected.address
    monkeypatch.delenv("TUNESMITH_PROFILE")
    assert main(["--profile", "default", "list"]) == 0, "the small server answers"
    capsys.readouterr()
    assert main(["profile", "list", "--json"]) == 0
    listed = capsys.readouterr().out
    assert [(one["name"], one["active"], one["token_set"]) for one in json.loads(listed)] == [
        ("default", False, True), ("lab", True, True),
    ]  # fmt: skip
    assert main(["profile", "show"]) == 0
    assert main(["profile", "list"]) == 0
    told = listed + capsys.readouterr().out
    assert "lab.example:7461" in told
    assert "secret" not in told
    assert TOKEN not in told
    assert main(["profile", "set", "lab", "--address", "evil.example:1"]) == 0
    assert profile.load(name="lab").token == "", "a token goes to the address it was given for"
    assert main(["profile", "remove", "lab"]) == 0
    assert (profile.chosen(), profile.names()) == ("default", ["default"])


def test_a_profile_named_by_an_argument_wins_over_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    profile.save(profile.Profile("a.example:1", "a", "pa"), name="a")
    monkeypatch.setenv("TUNESMITH_ADDRESS", "b.example:1")
    monkeypatch.setenv("TUNESMITH_TOKEN", "b")
    assert profile.resolve(name="a").address == "a.example:1"
    assert profile.resolve(name="a", project="mine").project == "mine"
    assert profile.resolve().address == "b.example:1"


@pytest.mark.parametrize("name", ["../evil", "", "A", "x/y", "nobody"])
def test_a_profile_that_is_not_there_is_an_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "use", name]) == 1
    assert "profile" in capsys.readouterr().err
    with pytest.raises(InvalidArgument):
        profile.resolve(name=name or "..")


def test_the_doctor_finds_all_well_with_a_server_and_says_what_to_mend_without(
    connected: SmallServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["doctor", "--json"]) == 0
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["server"]["status"] == "ok"
    assert found["torch"]["status"] == "ok"
    assert found["nats-server"]["status"] == "ok"
    assert found["nodes"]["status"] == "warn"
    assert "tunesmith serve agent" in found["nodes"]["remedy"]
    connected.close()
    monkeypatch.setattr("tunesmith.cli.doctor._CHECKS", doctor._CHECKS[:-1])  # torch takes its time
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "cannot reach Tunesmith" in out
    assert "tunesmith up" in out
    profile.remove("default")
    assert main(["doctor", "--json"]) == 1
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["profile"]["status"] == "fail"
    assert "server" not in found


def test_the_doctor_sees_a_token_others_can_read(
    connected: SmallServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.cli.doctor._CHECKS", doctor._CHECKS[:-1])
    profile.profile_path().chmod(0o644)
    assert main(["doctor", "--json"]) == 0
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["profile's file"]["status"] == "warn"
    assert TOKEN not in json.dumps(found)
