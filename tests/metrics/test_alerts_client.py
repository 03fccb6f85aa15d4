"""Files of rules, the SDK and the command line, against the running service."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.metrics.alerting import Alerting
from tests.support.bus import connected, running_nats
from tests.support.stubs import INTERNAL_TOKEN, running_service, stub
from tunesmith import alertfile
from tunesmith.api.metrics.v1 import alerts_pb2_grpc
from tunesmith.cli import main
from tunesmith.client import AsyncClient
from tunesmith.errors import InvalidArgument

EXAMPLE = Path(__file__).parents[2] / "examples" / "alerts.yaml"

FILE = """
channels:
  ops:
    webhook: {url: "https://example.org/hook", secret: "${HOOK_SECRET}"}
rules:
  high-loss:
    condition:
      threshold: {key: train/loss, comparison: above, value: 2}
    channels: [ops]
"""


async def test_a_file_is_applied_once_and_again_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "s3cret")
    file = tmp_path / "alerts.yaml"
    file.write_text(FILE)
    async with (
        running_nats(tmp_path) as server,
        running_service("metrics", server, tmp_path) as running,
        connected(server, "agent") as bus,
        stub(alerts_pb2_grpc.AlertServiceStub, running) as alerts,
        AsyncClient(running.address, INTERNAL_TOKEN, "default") as client,
    ):
        found = Alerting(bus, alerts)
        assert [d.change for d in await client.alerts.apply(file, dry_run=True)] == ["created", "created"]
        assert [rule async for rule in client.alerts.rules()] == []
        assert [d.change for d in await client.alerts.apply(file)] == ["created", "created"]
        again = await client.alerts.apply(file)
        assert [(d.name, d.change) for d in again if d.kind == "rule"] == [("high-loss", "unchanged")]
        file.write_text(FILE.replace("value: 2", "value: 3") + "    hold: 1m\n")
        (changed,) = [d for d in await client.alerts.apply(file) if d.kind == "rule"]
        assert (changed.change, changed.fields) == ("changed", ("condition", "hold"))
        await client.alerts.apply(EXAMPLE, prune=True)
        names = [rule.name.rpartition("/")[2] async for rule in client.alerts.rules()]
        assert names == sorted(alertfile.read(EXAMPLE, "default").rules)
        await found.losses(1, float("nan"))
        await found.until([2])

        async def run(*arguments: str) -> tuple[int, str, str]:
            options = ["--address", running.address, "--token", INTERNAL_TOKEN, "--project", "default"]
            code = await asyncio.to_thread(main, [*options, "alerts", *arguments])
            out, err = capsys.readouterr()
            return code, out, err

        code, out, _ = await run("list", "--state", "firing", "--json")
        (alert,) = json.loads(out)
        assert (code, alert["rule"]) == (0, "projects/default/alertRules/nan-loss")
        code, out, _ = await run("test", str(EXAMPLE), "--rule", "nan-loss", "--json")
        assert [each["summary"] for each in json.loads(out)] == [alert["summary"]]
        code, out, _ = await run("silence", "--for", "2h", "--rule", "nan-loss", "--json")
        silence = json.loads(out)["name"].rpartition("/")[2]
        for listing in ("list", "rules", "channels", "silences", "notifications"):
            code, out, err = await run(listing)
            assert (code, err) == (0, "") or listing == "notifications"
        assert (await run("unsilence", silence))[0] == 0
        code, _, err = await run("list", "--state", "fireing")
        assert code == 1
        assert "firing" in err


def test_mistakes_of_a_file_are_named_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "rules:\n"
        "  one:\n"
        "    severty: critical\n"
        "    condition:\n"
        "      threshold: {key: a, comparison: abov, value: 1}\n"
        "  two:\n"
        "    hold: -5m\n"
        "    name: mine\n"
        "    condition: {}\n"
        "rulez: {}\n"
    )
    with pytest.raises(InvalidArgument) as caught:
        alertfile.read(file, "default")
    assert caught.value.reason == "RULE_FILE_INVALID"
    said = {v.path: f"{v.problem}; {v.remedy}" for v in caught.value.violations}
    assert "(line 3); did you mean rules.one.severity?" in said["rules.one.severty"]
    assert "did you mean above?" in said["rules.one.condition.threshold.comparison"]
    assert "(line 7)" in said["rules.two.hold"]
    assert "is set by the server" in said["rules.two.name"]
    assert "is empty" in said["rules.two.condition"]
    assert "(line 10)" in said["rulez"]


def test_a_secret_that_is_not_in_the_environment_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOOK_SECRET", raising=False)
    file = tmp_path / "alerts.yaml"
    file.write_text(FILE)
    with pytest.raises(InvalidArgument, match="HOOK_SECRET, which is not set"):
        alertfile.read(file, "default")
