"""External runs by their rpcs. Programs use `tunesmith.init`, which keeps what it logs until it is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tunesmith import names
from tunesmith.api.jobs.v1 import external_pb2, spec_pb2, state_pb2
from tunesmith.api.metrics.v1 import records_pb2
from tunesmith.api.registry.v1 import blobs_pb2
from tunesmith.blobs import LocalFile, OnProgress, upload
from tunesmith.connection import Connection, new_request_id
from tunesmith.faces import Face, Handle, both
from tunesmith.pace import stamp

if TYPE_CHECKING:
    from tunesmith.api.jobs.v1 import jobs_pb2
    from tunesmith.parcel import Parcel


class ExternalRuns(Handle[Face]):
    """Runs of programs that the platform does not start."""

    _core: Connection

    @both
    async def start(
        self,
        *,
        job_id: str = "",
        experiment: str = "",
        config: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        host: str = "",
        program: str = "",
        request_id: str | None = None,
    ) -> external_pb2.StartExternalRunResponse:
        """Begins a run, or takes up the one whose id is `job_id`, and returns job, epoch and lease."""
        request = external_pb2.StartExternalRunRequest(
            parent=self._core.parent,
            job_id=job_id,
            experiment=experiment,
            labels=labels,
            external=spec_pb2.ExternalSpec(config=config, host=host, program=program),
            request_id=request_id or new_request_id(),
        )
        return await self._core.call(self._core.external.StartExternalRun, request)

    @both
    async def renew(
        self, name: str, epoch: int, progress: state_pb2.Progress | None = None
    ) -> external_pb2.RenewExternalRunResponse:
        """Says that the program lives and how far it is; returns the job and what is wanted of it."""
        request = external_pb2.RenewExternalRunRequest(
            name=self._name(name), epoch=epoch, progress=progress, request_id=new_request_id()
        )
        return await self._core.call(self._core.external.RenewExternalRun, request)

    @both
    async def write(
        self,
        name: str,
        epoch: int,
        *,
        records: Iterable[records_pb2.LoggedRecord] = (),
        first_seq: int = 0,
        lines: Iterable[records_pb2.LoggedLine] = (),
        log_offset: int = 0,
    ) -> records_pb2.WriteRecordsResponse:
        """Stores points and lines, each once by its number; returns how far all is stored."""
        request = records_pb2.WriteRecordsRequest(
            parent=self._name(name),
            epoch=epoch,
            first_seq=first_seq,
            records=records,
            log_offset=log_offset,
            lines=lines,
            request_id=new_request_id(),
        )
        return await self._core.call(self._core.records.WriteRecords, request)

    @both
    async def put_picture(self, name: str, digest: str, file: LocalFile | None) -> None:
        """Has a picture kept as long as the run whose records name it by its SHA-256, and uploads it.

        `file` is None for one that was uploaded before.
        """
        hold = blobs_pb2.HoldBlobRequest(parent=self._name(name), digest=digest, request_id=new_request_id())
        await self._core.call(self._core.blobs.HoldBlob, hold)
        if file is not None:
            await upload(self._core, [file])

    @both
    async def put_checkpoint(
        self, name: str, epoch: int, parcel: Parcel, on_progress: OnProgress | None = None
    ) -> state_pb2.CheckpointRef:
        """Uploads the files of a checkpoint that are not stored yet, and enters it; each is entered once."""
        await upload(self._core, [*parcel.files, parcel.manifest], on_progress)
        facts = parcel.facts
        request = external_pb2.CommitExternalCheckpointRequest(
            name=self._name(name),
            epoch=epoch,
            step=facts.step,
            digest=parcel.manifest.sha256,
            size_bytes=parcel.size_bytes,
            eval_loss=facts.eval_loss,
            keep=facts.keep,
            create_time=stamp(facts.time),
            request_id=new_request_id(),
        )
        return (await self._core.call(self._core.external.CommitExternalCheckpoint, request)).checkpoint

    @both
    async def finish(
        self,
        name: str,
        epoch: int,
        *,
        failed: bool = False,
        message: str = "",
        progress: state_pb2.Progress | None = None,
    ) -> jobs_pb2.Job:
        """Ends a run and returns its job."""
        request = external_pb2.FinishExternalRunRequest(
            name=self._name(name),
            epoch=epoch,
            failed=failed,
            message=message[:4000],
            progress=progress,
            request_id=new_request_id(),
        )
        return (await self._core.call(self._core.external.FinishExternalRun, request)).job

    def _name(self, name: str) -> str:
        return names.resource(self._core.project, "jobs", name)
