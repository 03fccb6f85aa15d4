"""Which server to talk to, as whom, about which project.

Each value comes from the first of: the argument, the environment (`TUNESMITH_ADDRESS`, `TUNESMITH_TOKEN`,
`TUNESMITH_PROJECT`), a profile file, the default. The profile `default` is what `tunesmith up` writes
(`~/.config/tunesmith/profile.json`, or in `TUNESMITH_CONFIG_DIR`); others lie in `profiles/` beside it. Which
one: that of the argument, of `TUNESMITH_PROFILE`, of `tunesmith profile use`, or `default`.
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
DEFAULT_PROFILE = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_OVERRIDDEN = ("TUNESMITH_ADDRESS", "TUNESMITH_TOKEN", "TUNESMITH_PROJECT")
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


def profile_path(env: Mapping[str, str] = os.environ, name: str = DEFAULT_PROFILE) -> Path:
    """Returns the path of a profile's file, whether it exists or not.

    Raises InvalidArgument when no profile can have that name.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidArgument(
            "FIELD_INVALID",
            "this is no name of a profile",
            field="profile",
            value=name,
            remedy="use lower-case letters, digits, dots, dashes and underscores",
        )
    folder = config_dir(env)
    return folder / "profile.json" if name == DEFAULT_PROFILE else folder / "profiles" / f"{name}.json"


def names(env: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the names of the profiles that are there."""
    found = sorted(path.stem for path in (config_dir(env) / "profiles").glob("*.json"))
    default = [DEFAULT_PROFILE] if profile_path(env).exists() else []
    return default + [name for name in found if _NAME.fullmatch(name)]


def chosen(env: Mapping[str, str] = os.environ) -> str:
    """Returns the name of the profile in force when no argument names one."""
    if given := env.get("TUNESMITH_PROFILE"):
        return given
    try:
        return (config_dir(env) / "active").read_text("utf-8").strip() or DEFAULT_PROFILE
    except (OSError, ValueError):
        return DEFAULT_PROFILE


def use(name: str, env: Mapping[str, str] = os.environ) -> None:
    """Makes a profile the one in force.

    Raises InvalidArgument when there is none of that name.
    """
    existing(name, env)
    _write(config_dir(env) / "active", name + "\n")


def existing(name: str, env: Mapping[str, str] = os.environ) -> Profile:
    """Returns a profile.

    Raises InvalidArgument when there is none of that name.
    """
    if not profile_path(env, name).exists():
        raise InvalidArgument(
            "PROFILE_UNKNOWN",
            f"there is no profile {name}",
            field="profile",
            value=name,
            remedy="`tunesmith profile list` shows all; `tunesmith profile set NAME` makes one",
        )
    return load(env, name)


def remove(name: str, env: Mapping[str, str] = os.environ) -> None:
    """Removes a profile; `default` is in force again if it was."""
    existing(name, env)
    profile_path(env, name).unlink()
    if name != DEFAULT_PROFILE and chosen({**env, "TUNESMITH_PROFILE": ""}) == name:
        (config_dir(env) / "active").unlink(missing_ok=True)


def load(env: Mapping[str, str] = os.environ, name: str = DEFAULT_PROFILE) -> Profile:
    """Returns what a profile's file says; all empty when there is none.

    Raises InvalidArgument when the file cannot be read or is no profile.
    """
    path = profile_path(env, name)
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


def save(profile: Profile, env: Mapping[str, str] = os.environ, name: str = DEFAULT_PROFILE) -> Path:
    """Writes a profile's file (mode 0600, atomically, since it holds the token) and returns its path."""
    path = profile_path(env, name)
    _write(path, json.dumps(asdict(profile), indent=2) + "\n")
    return path


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".profile-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def resolve(
    address: str | None = None,
    token: str | None = None,
    project: str | None = None,
    env: Mapping[str, str] = os.environ,
    name: str | None = None,
) -> Profile:
    """Returns the profile in force: the one called `name`, with what is given elsewhere in its place.

    The token of the file is used with the address of the file only, so that it is never sent elsewhere. A
    profile that an argument names counts for more than the variables of address, token and project.
    Raises InvalidArgument for an address of another form or a profile that is not there, Unauthenticated when
    no token is known.
    """
    if name:
        env = {key: text for key, text in env.items() if key not in _OVERRIDDEN}
    given_address = address or env.get("TUNESMITH_ADDRESS", "")
    given_token = token or env.get("TUNESMITH_TOKEN", "")
    given_project = project or env.get("TUNESMITH_PROJECT", "")
    file = Profile()
    if not (given_address and given_token and given_project):
        wanted = name or chosen(env)
        file = load(env) if wanted == DEFAULT_PROFILE else existing(wanted, env)
    where = given_address or file.address or DEFAULT_ADDRESS
    check_address(where)
    at_home = where == (file.address or DEFAULT_ADDRESS)
    chosen_token = given_token or (file.token if at_home else "")
    if not chosen_token:
        raise _no_token(where, file, env)
    return Profile(
        address=where,
        token=chosen_token,
        project=given_project or file.project or DEFAULT_PROJECT,
        http=file.http if at_home else "",
    )


def check_address(address: str) -> None:
    """Raises InvalidArgument for an address that is not of the form host:port."""
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
