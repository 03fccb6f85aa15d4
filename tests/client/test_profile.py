"""Where address, token and project come from."""

import stat
from pathlib import Path

import pytest

from tunesmith import InvalidArgument, Unauthenticated, profile
from tunesmith.profile import Profile

HOME = Profile(address="127.0.0.1:7461", token="secret", project="lab", http="http://127.0.0.1:7460")


def _env(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"TUNESMITH_CONFIG_DIR": str(tmp_path), **more}


def test_the_saved_profile_is_found_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    path = profile.save(HOME, _env(tmp_path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert profile.resolve(env=_env(tmp_path)) == HOME


def test_arguments_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    profile.save(HOME, _env(tmp_path))
    env = _env(tmp_path, TUNESMITH_PROJECT="theirs", TUNESMITH_TOKEN="other")
    assert profile.resolve(env=env).project == "theirs"
    assert profile.resolve(project="mine", env=env).project == "mine"
    assert profile.resolve(env=env).token == "other"


def test_the_saved_token_is_never_sent_to_another_address(tmp_path: Path) -> None:
    profile.save(HOME, _env(tmp_path))
    with pytest.raises(Unauthenticated, match="the one in the profile is for 127") as caught:
        profile.resolve("elsewhere.example:7461", env=_env(tmp_path))
    assert "TUNESMITH_TOKEN" in caught.value.remedy


def test_without_a_token_the_error_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(Unauthenticated) as caught:
        profile.resolve(env=_env(tmp_path))
    assert caught.value.reason == "TOKEN_MISSING"
    assert "tunesmith up" in caught.value.remedy


@pytest.mark.parametrize("address", ["localhost", "http://localhost:7460", "localhost:port", ":7461"])
def test_an_address_of_another_form_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(InvalidArgument, match="host:port"):
        profile.resolve(address, "token", env=_env(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '{"token": 3}', "\x00"])
def test_a_broken_profile_is_named_with_its_path(tmp_path: Path, content: str) -> None:
    (tmp_path / "profile.json").write_text(content)
    with pytest.raises(InvalidArgument) as caught:
        profile.resolve(env=_env(tmp_path))
    assert caught.value.value.endswith("profile.json")


def test_a_profile_of_a_later_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text('{"token": "t", "colour": "blue"}')
    assert profile.resolve(env=_env(tmp_path)).token == "t"
