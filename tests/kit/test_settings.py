"""Settings come from the environment, the service's own first; nothing is ignored in silence."""

from dataclasses import dataclass

import pytest

from tunesmith.errors import InvalidArgument
from tunesmith_kit.settings import ServiceSettings, load, setting


@dataclass(frozen=True)
class JobsSettings(ServiceSettings):
    """Settings of a service, with a kind each."""

    fast: bool = setting(False, "for the test")
    ratio: float = setting(0.5, "for the test")


def test_the_services_own_variable_goes_before_the_common_one_and_an_override_before_both() -> None:
    env = {
        "TUNESMITH_DATABASE_URL": "sqlite:///all.db",
        "TUNESMITH_JOBS_DATABASE_URL": "sqlite:///jobs.db",
        "TUNESMITH_NATS_URL": "nats://all:4222",
        "TUNESMITH_PORT": "7471",
        "TUNESMITH_FAST": "yes",
    }
    found = load(JobsSettings, "jobs", {"nats_url": "nats://given:4222"}, env)
    assert (found.database_url, found.nats_url) == ("sqlite:///jobs.db", "nats://given:4222")
    assert (found.port, found.fast, found.ratio) == (7471, True, 0.5)
    assert load(JobsSettings, "registry", {}, env).database_url == "sqlite:///all.db"


@pytest.mark.parametrize(
    ("name", "value"),
    [("TUNESMITH_PORT", "many"), ("TUNESMITH_JOBS_FAST", "perhaps"), ("TUNESMITH_RATIO", "")],
)
def test_a_value_of_another_kind_is_named(name: str, value: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load(JobsSettings, "jobs", {}, {name: value})
    assert (caught.value.reason, caught.value.field, caught.value.value) == ("SETTING_INVALID", name, value)
    assert caught.value.remedy


def test_an_unknown_variable_of_the_service_is_refused_with_what_was_meant() -> None:
    with pytest.raises(InvalidArgument, match="unknown setting") as caught:
        load(JobsSettings, "jobs", {}, {"TUNESMITH_JOBS_DATABASE_ULR": "x"})
    assert "TUNESMITH_JOBS_DATABASE_URL" in caught.value.remedy
    load(JobsSettings, "jobs", {}, {"TUNESMITH_REGISTRY_DATABASE_ULR": "x"})  # another service's business
