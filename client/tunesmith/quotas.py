"""What a project may use of the fleet."""

from __future__ import annotations

from tunesmith.api.jobs.v1 import queue_pb2
from tunesmith.connection import Connection, new_request_id
from tunesmith.faces import Face, Handle, both


class Quotas(Handle[Face]):
    """The quota of the client's project, or of another one named."""

    _core: Connection

    @both
    async def get(self, project: str = "") -> queue_pb2.Quota:
        """Returns the quota and what the project uses of it."""
        request = queue_pb2.GetQuotaRequest(name=self._name(project))
        return (await self._core.call(self._core.jobs.GetQuota, request)).quota

    @both
    async def set(
        self,
        *,
        project: str = "",
        max_running_jobs: int | None = None,
        max_gpus: int | None = None,
        weight: float | None = None,
    ) -> queue_pb2.Quota:
        """Sets the whole quota: what is None has no limit, and a weight of 1. Returns it."""
        quota = queue_pb2.Quota(
            name=self._name(project), max_running_jobs=max_running_jobs, max_gpus=max_gpus, weight=weight
        )
        request = queue_pb2.SetQuotaRequest(quota=quota, request_id=new_request_id())
        return (await self._core.call(self._core.jobs.SetQuota, request)).quota

    def _name(self, project: str) -> str:
        return f"projects/{project or self._core.project}/quota"
