"""Settings: one frozen dataclass a process, built once in `main.py` and passed down.

A field `database_url` of the service `jobs` is read from `TUNESMITH_JOBS_DATABASE_URL`, else from
`TUNESMITH_DATABASE_URL`. A variable for this service that no field has is an error: a setting that is
silently ignored is a bug.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from tunesmith.errors import InvalidArgument

T = TypeVar("T", bound="ServiceSettings")
PREFIX = "TUNESMITH_"


def setting(default: Any, help: str, secret: bool = False) -> Any:
    """Declares a setting with its default and a sentence for the documentation."""
    return field(default=default, metadata={"help": help, "secret": secret})


@dataclass(frozen=True)
class ServiceSettings:
    """What every service process can be told."""

    data_dir: Path = setting(Path("tunesmith-data"), "folder for databases, blobs and runs")
    database_url: str = setting("", "SQLAlchemy URL; empty: SQLite in the data folder")
    nats_url: str = setting("nats://127.0.0.1:4222", "addresses of NATS servers, separated by commas")
    nats_token: str = setting("", "token for NATS", secret=True)
    num_replicas: int = setting(1, "copies JetStream keeps of each stream; 3 on a cluster")
    internal_token: str = setting("", "secret the services prove themselves with to each other", secret=True)
    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(0, "gRPC port; 0: any free one")
    http_port: int = setting(-1, "port of /healthz, /readyz and /metrics; 0: any free one, -1: off")
    blobs_url: str = setting("", "blob store, a folder or s3://bucket/prefix; empty: in the data folder")
    otlp_endpoint: str = setting("", "OTLP/HTTP address that receives traces; empty: none is sent")
    traces: bool = setting(True, "keep the spans of jobs, so that page and command line can show traces")
    log_format: str = setting("json", "json for programs, text for people")
    log_level: str = setting("info", "debug, info, warning or error")

    def blobs(self) -> str:
        """Returns the blob store's address with the default filled in."""
        return self.blobs_url or str(self.data_dir / "blobs")

    def database(self, service: str) -> str:
        """Returns the database's address with the default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir / service}.db"


def load(
    cls: type[T],
    service: str,
    overrides: Mapping[str, object] | None = None,
    env: Mapping[str, str] = os.environ,
) -> T:
    """Builds the settings of `service` from `overrides`, else the environment, else the defaults.

    Raises:
        InvalidArgument: a value does not parse, or the environment names a setting that does not exist.
    """
    own = f"{PREFIX}{service.upper()}_"
    hints = get_type_hints(cls)
    known = {item.name for item in fields(cls)}
    _refuse_unknown(env, own, known)
    values: dict[str, object] = dict(overrides or {})
    for item in fields(cls):
        if item.name in values:
            continue
        for name in (own + item.name.upper(), PREFIX + item.name.upper()):
            if name in env:
                values[item.name] = _parse(name, env[name], hints[item.name])
                break
    missing = [i.name for i in fields(cls) if i.default is MISSING and i.name not in values]
    assert not missing, f"settings without default: {missing}"
    return cls(**cast(dict[str, Any], values))


def _refuse_unknown(env: Mapping[str, str], own: str, known: set[str]) -> None:
    for name in env:
        if name.startswith(own) and name.removeprefix(own).lower() not in known:
            near = difflib.get_close_matches(name.removeprefix(own).lower(), known, n=1)
            hint = (
                f"did you mean {own}{near[0].upper()}?" if near else f"settings: {', '.join(sorted(known))}"
            )
            raise InvalidArgument("SETTING_INVALID", f"unknown setting {name}", field=name, remedy=hint)


def _parse(name: str, text: str, kind: object) -> object:
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[
                text.lower()
            ]
        if kind in (int, float, Path, str):
            return cast(type, kind)(text)
    except (KeyError, ValueError):
        raise InvalidArgument(
            "SETTING_INVALID",
            f"{name} is not a {getattr(kind, '__name__', kind)}",
            field=name,
            value=text,
            remedy="correct the value or unset the variable to use the default",
        ) from None
    raise AssertionError(f"setting {name} has an unsupported type {kind}")
