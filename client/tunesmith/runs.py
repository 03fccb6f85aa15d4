"""The table of runs: jobs with their configuration and the last values of their metrics."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tunesmith import names
from tunesmith.api.metrics.v1 import runs_pb2
from tunesmith.connection import Connection
from tunesmith.faces import Face, Handle, both

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas

_PAGE = 1000


@dataclass(frozen=True)
class Run:
    """A row of the table. `metrics` are last values by key, `config` the job file's fields by path, as texts.

    `created` is None and `state` empty while the jobs service has not told of the job.
    """

    job: str
    name: str
    experiment: str
    state: str
    labels: Mapping[str, str]
    created: datetime | None
    metrics: Mapping[str, float]
    config: Mapping[str, str]
    last_step: int
    num_points: int


class RunTable(list[Run]):
    """Rows in the order asked for. `total`: how many match, which may be more."""

    def __init__(self, runs: Iterable[Run], total: int) -> None:
        super().__init__(runs)
        self.total = total

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from tunesmith import notebook

        return notebook.runs(self, self.total)

    def to_pandas(self) -> pandas.DataFrame:
        """Returns a pandas DataFrame indexed by the jobs' ids: columns `name`, `state`, `experiment`,
        `created`, `last_step`, then metrics by key, `config.PATH` and `label.KEY`."""
        try:
            module = importlib.import_module("pandas")
        except ImportError:
            raise ModuleNotFoundError("this needs pandas: pip install pandas") from None
        rows: list[dict[str, Any]] = [
            {
                "name": run.name,
                "state": run.state,
                "experiment": run.experiment,
                "created": run.created,
                "last_step": run.last_step,
                **run.metrics,
                **{f"config.{path}": text for path, text in run.config.items()},
                **{f"label.{key}": text for key, text in run.labels.items()},
            }
            for run in self
        ]
        return module.DataFrame(
            rows, index=module.Index([names.last_part(run.job) for run in self], name="job")
        )


class Runs(Handle[Face]):
    """The runs of the project."""

    _core: Connection

    @both
    async def query(
        self,
        filter: str = "",
        *,
        order_by: str = "",
        metrics: Iterable[str] = (),
        config: Iterable[str] = (),
        limit: int | None = None,
    ) -> RunTable:
        """Returns the runs that meet a filter such as `train/loss < 1.2 and adapter.lora.r = 16`.

        Args:
            filter: conditions on metrics (last values, `min(KEY)`, `max(KEY)`), fields of the job file,
                `name`, `state`, `experiment`, `created`, `label.KEY`. Empty: all runs.
            order_by: such as `train/loss, created desc`. Default: the newest first.
            metrics: keys wanted in the rows. Default: the 100 most frequent.
            config: fields wanted in the rows. Default: all.
            limit: most rows. Default: all.

        Raises:
            InvalidArgument: the filter or the order is wrong; the message names the column.
        """
        request = runs_pb2.QueryRunsRequest(
            parent=self._core.parent,
            filter=filter,
            order_by=order_by,
            metrics=metrics,
            config=config,
            page_size=min(limit or _PAGE, _PAGE),
        )
        found: list[Run] = []
        total = 0
        async for page in self._core.pages(self._core.metrics.QueryRuns, request):
            total = page.total_size
            found += [_run(proto) for proto in page.runs]
            if limit is not None and len(found) >= limit:
                break
        return RunTable(found[:limit], total)

    @both
    async def columns(self) -> runs_pb2.ListRunColumnsResponse:
        """Returns what a query can show, filter and sort by: metrics, and fields of job files."""
        request = runs_pb2.ListRunColumnsRequest(parent=self._core.parent)
        return await self._core.call(self._core.metrics.ListRunColumns, request)


def _run(proto: runs_pb2.Run) -> Run:
    return Run(
        job=proto.job,
        name=proto.display_name,
        experiment=proto.experiment,
        state=proto.state,
        labels=dict(proto.labels),
        created=proto.create_time.ToDatetime(UTC) if proto.HasField("create_time") else None,
        metrics=dict(proto.metrics),
        config=dict(proto.config),
        last_step=proto.last_step,
        num_points=proto.num_points,
    )
