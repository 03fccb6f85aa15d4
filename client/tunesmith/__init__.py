"""Fine-tune language models on a fleet of your own machines.

    from tunesmith import Client

    with Client() as client:
        job = client.jobs.submit("job.yaml")
        print(job.wait().state)

`Client` blocks, `AsyncClient` is awaited; both have the same methods. Everything is imported on first use,
so that `import tunesmith` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.client import AsyncClient, Client
    from tunesmith.errors import (
        Aborted,
        AlreadyExists,
        DeadlineExceeded,
        FailedPrecondition,
        Internal,
        InvalidArgument,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        TunesmithError,
        Unauthenticated,
        Unavailable,
        Unimplemented,
        Violation,
    )
    from tunesmith.jobs import Job
    from tunesmith.metrics import Curves, Series
    from tunesmith.program import finish, init, log
    from tunesmith.recording import Recording
    from tunesmith.runs import Run, RunTable

    __version__: str

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AsyncClient",
    "Client",
    "Curves",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "Job",
    "NotFound",
    "PermissionDenied",
    "Recording",
    "ResourceExhausted",
    "Run",
    "RunTable",
    "Series",
    "TunesmithError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "__version__",
    "finish",
    "init",
    "log",
]

_HOMES = {
    "AsyncClient": "tunesmith.client",
    "Client": "tunesmith.client",
    "Curves": "tunesmith.metrics",
    "Job": "tunesmith.jobs",
    "Recording": "tunesmith.recording",
    "Run": "tunesmith.runs",
    "RunTable": "tunesmith.runs",
    "Series": "tunesmith.metrics",
    "finish": "tunesmith.program",
    "init": "tunesmith.program",
    "log": "tunesmith.program",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # The number stands in pyproject.toml only; the look-up costs 10 ms, so it waits until asked for.
        return importlib.import_module("importlib.metadata").version("tunesmith")
    if name not in __all__:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOMES.get(name, "tunesmith.errors")), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
