"""Datasets: import, list."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

from tunesmith import names
from tunesmith.api.registry.v1 import datasets_pb2
from tunesmith.blobs import OnProgress, inspect, upload
from tunesmith.connection import Connection, new_request_id
from tunesmith.faces import Face, Handle, both, stream

_FORMATS = {
    ".jsonl": datasets_pb2.DATASET_FORMAT_JSONL,
    ".ndjson": datasets_pb2.DATASET_FORMAT_JSONL,
    ".csv": datasets_pb2.DATASET_FORMAT_CSV,
    ".parquet": datasets_pb2.DATASET_FORMAT_PARQUET,
}
# The server reads every row before it answers: about 10 MB/s with the row checks.
_IMPORT_BYTES_PER_SECOND = 1e6


class Datasets(Handle[Face]):
    """The datasets of the project."""

    _core: Connection

    @both
    async def import_file(
        self,
        path: str | Path,
        dataset_id: str,
        *,
        description: str = "",
        validate_only: bool = False,
        on_progress: OnProgress | None = None,
    ) -> datasets_pb2.ImportDatasetResponse:
        """Uploads a JSONL, CSV or Parquet file and makes a version of the dataset from it.

        Content that is known already is neither sent nor stored again: the answer is the version that has it.
        Raises InvalidArgument naming the first wrong rows; then nothing is kept. With `validate_only` the
        answer holds the report only. `on_progress` hears (bytes done, bytes in all).
        """
        file = await inspect(Path(path))
        await upload(self._core, [file], on_progress)
        request = datasets_pb2.ImportDatasetRequest(
            parent=self._core.parent,
            dataset_id=dataset_id,
            source_digest=file.sha256,
            format=_FORMATS.get(file.path.suffix.lower(), datasets_pb2.DATASET_FORMAT_UNSPECIFIED),
            source=file.path.name,
            description=description,
            validate_only=validate_only,
            request_id=new_request_id(),
        )
        seconds = 60 + file.size_bytes / _IMPORT_BYTES_PER_SECOND
        return await self._core.call(self._core.datasets.ImportDataset, request, seconds=seconds)

    @both
    async def get(self, name: str) -> datasets_pb2.Dataset:
        """Returns one dataset by its id or resource name."""
        request = datasets_pb2.GetDatasetRequest(name=names.resource(self._core.project, "datasets", name))
        return (await self._core.call(self._core.datasets.GetDataset, request)).dataset

    @stream
    async def list(self) -> AsyncGenerator[datasets_pb2.Dataset, None]:
        """Yields datasets by id."""
        request = datasets_pb2.ListDatasetsRequest(parent=self._core.parent, page_size=200)
        async for page in self._core.pages(self._core.datasets.ListDatasets, request):
            for dataset in page.datasets:
                yield dataset

    @stream
    async def versions(self, name: str) -> AsyncGenerator[datasets_pb2.DatasetVersion, None]:
        """Yields the versions of a dataset, newest first."""
        parent = names.resource(self._core.project, "datasets", name)
        request = datasets_pb2.ListDatasetVersionsRequest(parent=parent, page_size=200)
        async for page in self._core.pages(self._core.datasets.ListDatasetVersions, request):
            for version in page.versions:
                yield version
