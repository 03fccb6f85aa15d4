"""Which server to talk to, as whom, about which project.

Each value comes from the first of: the argument, the environment (`TUNESMITH_ADDRESS`, `TUNESMITH_TOKEN`,
`TUNESMITH_PROJECT`), the profile file that `tunesmith up` writes (`~/.config/tunesmith/profile.json`, or in
`TUNESMITH_CONFIG_DIR`), the default.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tunesmith.errors import InvalidArgument, Unauthenticated

DEFAULT_ADDRESS = "127.0.0.1:7461"
DEFAULT_PROJECT = "default"
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")


@dataclass(frozen=True)
class Profile:
    """Where a server is and how to speak to it."""

    address: str = ""
    """Host and port of the gRPC gateway."""
    token: str = ""
    """Bearer token."""
    project: str = ""
    """Project that unqualified names belong to."""
    http: str = ""
    """Base address of the web page and REST, for people to open."""


def config_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Returns the folder of the profile file."""
    if given := env.get("TUNESMITH_CONFIG_DIR"):
        return Path(given).expanduser()
    base = env.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "tunesmith"


def profile_path(env: Mapping[str, str] = os.environ) -> Path:
    """Returns the path of the profile file, whether it exists or not."""
    return config_dir(env) / "profile.json"


def load(env: Mapping[str, str] = os.environ) -> Profile:
    """Returns what the profile file says; all empty when there is none.

    Raises InvalidArgument when the file cannot be read or is no profile.
    """
    path = profile_path(env)
    remedy = "run `tunesmith up` to write it anew, or delete it"
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Profile()
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            "FILE_UNREADABLE", f"cannot read the profile: {error}", field="profile", value=path, remedy=remedy
        ) from None
    known = {field.name for field in fields(Profile)}
    if not isinstance(data, dict) or not all(isinstance(data.get(name, ""), str) for name in known):
        raise InvalidArgument(
            "FILE_UNREADABLE",
            "the profile is not an object of texts",
            field="profile",
            value=path,
            remedy=remedy,
        )
    return Profile(**{name: text for name, text in data.items() if name in known})


def save(profile: Profile, env: Mapping[str, str] = os.environ) -> Path:
    """Writes the profile file (mode 0600, atomically, since it holds the token) and returns its path."""
    path = profile_path(env)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".profile-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(profile), file, indent=2)
            file.write("\n")
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def resolve(
    address: str | None = None,
    token: str | None = None,
    project: str | None = None,
    env: Mapping[str, str] = os.environ,
) -> Profile:
    """Returns the profile in force.

    The token of the file is used with the address of the file only, so that it is never sent elsewhere.
    Raises InvalidArgument for an address of another form, Unauthenticated when no token is known.
    """
    given_address = address or env.get("TUNESMITH_ADDRESS", "")
    given_token = token or env.get("TUNESMITH_TOKEN", "")
    given_project = project or env.get("TUNESMITH_PROJECT", "")
    file = Profile() if given_address and given_token and given_project else load(env)
    chosen = given_address or file.address or DEFAULT_ADDRESS
    _check_address(chosen)
    at_home = chosen == (file.address or DEFAULT_ADDRESS)
    chosen_token = given_token or (file.token if at_home else "")
    if not chosen_token:
        raise _no_token(chosen, file, env)
    return Profile(
        address=chosen,
        token=chosen_token,
        project=given_project or file.project or DEFAULT_PROJECT,
        http=file.http if at_home else "",
    )


def _check_address(address: str) -> None:
    if _ADDRESS.fullmatch(address) is None:
        raise InvalidArgument(
            "FIELD_INVALID",
            "the address is not of the form host:port",
            field="address",
            value=address,
            remedy=f"give host and gRPC port, for example {DEFAULT_ADDRESS}",
        )


def _no_token(address: str, file: Profile, env: Mapping[str, str]) -> Unauthenticated:
    if file.token:
        message = f"no token for {address}; the one in the profile is for {file.address}"
    else:
        message = f"no token for {address}"
    return Unauthenticated(
        "TOKEN_MISSING",
        message,
        field="token",
        remedy=f"`tunesmith up` writes one to {profile_path(env)}; for another server set TUNESMITH_TOKEN",
    )
