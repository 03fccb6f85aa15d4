"""What counts as a secret."""

from dataclasses import dataclass

import pytest

from tunesmith_agent.redaction import Redactor
from tunesmith_kit.settings import setting


@dataclass
class Settings:
    token: str = setting("", "a token", secret=True)
    host: str = setting("", "no secret")


def test_values_of_secret_variables_and_settings_are_known() -> None:
    environment = {
        "HF_TOKEN": "opaque-value-1",
        "WANDB_API_KEY": "opaque-value-2",
        "db_password": "opaque-value-3",
        "AWS_SECRET_ACCESS_KEY": "opaque-value-4",
        "PRIVATE_KEY": "-----BEGIN-----\nline-one-of-it\nline-two-of-it",
        "URL": "postgresql://user:opaque-value-5@host/db",
        "LANG": "en_GB.UTF-8-odd",
        "KEYBOARD": "qwertyuiop",
        "NUM_TOKENS": "1000000",
        "SHORT_KEY": "ab",
    }
    redactor = Redactor.of(environment, Settings(token="opaque-value-6", host="the-host"))
    for number in range(1, 7):
        assert redactor.clean(f"<opaque-value-{number}>") == "<[redacted]>"
    assert redactor.clean("line-two-of-it") == "[redacted]"
    plain = "en_GB.UTF-8-odd qwertyuiop 1000000 ab the-host"
    assert redactor.clean(plain) == plain


@pytest.mark.parametrize(
    "secret",
    [
        "hf_AbCdEfGhIjKlMnOpQrStUvWx",
        "sk-proj-abcdefghijklmnop1234",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "AKIAIOSFODNN7EXAMPLE",
        "xoxb-1234567890-abcdef",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-def_ghi",
    ],
)
def test_well_known_forms_are_known(secret: str) -> None:
    assert Redactor().clean(f"a {secret}, b") == "a [redacted], b"


def test_what_stands_in_headers_and_addresses_is_known() -> None:
    assert Redactor().clean("Authorization: Bearer abc.def-123456") == "Authorization: Bearer [redacted]"
    assert Redactor().clean("https://me:pass@host/x") == "https://[redacted]@host/x"
    assert Redactor().clean("https://host:80/x a@b") == "https://host:80/x a@b"


def test_the_longer_of_two_secrets_goes_first() -> None:
    assert Redactor(["abcdef", "abcdefghij"]).clean("abcdefghij") == "[redacted]"
