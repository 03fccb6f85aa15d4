"""Datasets: import, list, look into, derive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path

import grpc

from tunesmith import hub, names
from tunesmith.api.registry.v1 import datasets_pb2, derivations_pb2, statistics_pb2
from tunesmith.blobs import OnProgress, inspect, unreadable, upload
from tunesmith.connection import Connection, new_request_id
from tunesmith.errors import FailedPrecondition
from tunesmith.faces import Face, Handle, both, stream

_FORMATS = {
    ".jsonl": datasets_pb2.DATASET_FORMAT_JSONL,
    ".ndjson": datasets_pb2.DATASET_FORMAT_JSONL,
    ".csv": datasets_pb2.DATASET_FORMAT_CSV,
    ".tsv": datasets_pb2.DATASET_FORMAT_TSV,
    ".parquet": datasets_pb2.DATASET_FORMAT_PARQUET,
    ".arrow": datasets_pb2.DATASET_FORMAT_ARROW,
    ".txt": datasets_pb2.DATASET_FORMAT_TEXT_LINES,
}
_PACKED = (".gz", ".zst")
_POLL_SECONDS = 0.3
OnImport = Callable[[datasets_pb2.ImportProgress], None]
"""Hears how far the server has come with an import."""


class Datasets(Handle[Face]):
    """The datasets of the project. A version is named `id` (the newest) or `id@version`."""

    _core: Connection

    @both
    async def import_file(
        self,
        path: str | Path,
        dataset_id: str,
        *,
        description: str = "",
        validate_only: bool = False,
        format: str = "",
        row_format: str = "",
        mapping: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        on_import: OnImport | None = None,
    ) -> datasets_pb2.ImportDatasetResponse:
        """Uploads a file and makes a version of the dataset from it.

        Formats are JSON lines, JSON, CSV, TSV, Parquet, Arrow and text, also as .gz or .zst;
        `format` is needed for text only (`text_lines`, `text_paragraphs`). `row_format` `record` takes any
        columns, `mapping` says which column holds what. Content that is known already is neither sent nor
        stored again: the answer is the version that has it. A broken upload goes on where it stopped.

        Raises InvalidArgument naming the first wrong rows; then nothing is kept. With `validate_only` the
        answer holds the report only, errors included. `on_progress` hears (bytes sent, bytes in all),
        `on_import` how far the check has come.
        """
        file = await inspect(Path(path))
        await upload(self._core, [file], on_progress)
        wanted = datasets_pb2.ImportDatasetRequest(
            dataset_id=dataset_id,
            source_digest=file.sha256,
            format=_format(file.path, format),
            source=file.path.name,
            description=description,
            validate_only=validate_only,
            row_format=row_format,
            mapping=mapping,
        )
        return await self._import(wanted, on_import)

    @both
    async def import_from(
        self,
        source: str,
        dataset_id: str,
        *,
        files: str = "",
        description: str = "",
        validate_only: bool = False,
        format: str = "",
        row_format: str = "",
        mapping: Mapping[str, str] | None = None,
        on_import: OnImport | None = None,
    ) -> datasets_pb2.ImportDatasetResponse:
        """Makes a version from what the server itself can read.

        `source` is an address (`https://…`), a data set on the hub (`hf:OWNER/NAME` or
        `hf:OWNER/NAME@REVISION`, with a pattern of `files`), or a path below a folder that the server shares.
        """
        on_hub = source.startswith(hub.PREFIX)
        named = "" if on_hub else source.partition("?")[0]  # a repository's name says nothing of its files
        wanted = datasets_pb2.ImportDatasetRequest(
            dataset_id=dataset_id,
            format=_format(Path(named), format),
            description=description,
            validate_only=validate_only,
            row_format=row_format,
            mapping=mapping,
        )
        if on_hub:
            repo, _, revision = source.removeprefix(hub.PREFIX).partition("@")
            wanted.hub.CopyFrom(datasets_pb2.HubSource(repo=repo, revision=revision, files=files))
        elif source.startswith(("http://", "https://")):
            wanted.url = source
        else:
            wanted.path = source
        return await self._import(wanted, on_import)

    async def _import(
        self, wanted: datasets_pb2.ImportDatasetRequest, on_import: OnImport | None
    ) -> datasets_pb2.ImportDatasetResponse:
        wanted.parent, wanted.request_id = self._core.parent, new_request_id()
        request = datasets_pb2.RunImportRequest(import_request=wanted, request_id=wanted.request_id)

        async def attempt() -> datasets_pb2.ImportDatasetResponse | None:
            result = None
            async for message in self._core.datasets.RunImport(request, metadata=self._core.metadata):
                if on_import is not None:
                    on_import(message.progress)
                if message.HasField("result"):
                    result = message.result
            return result

        result = await self._core.repeat(attempt)
        if result is None:
            raise FailedPrecondition("IMPORT_INCOMPLETE", "the server ended the import without an answer")
        return result

    @both
    async def get(self, name: str) -> datasets_pb2.Dataset:
        """Returns one dataset by its id or resource name."""
        request = datasets_pb2.GetDatasetRequest(name=names.resource(self._core.project, "datasets", name))
        return (await self._core.call(self._core.datasets.GetDataset, request)).dataset

    @both
    async def version(self, name: str) -> datasets_pb2.DatasetVersion:
        """Returns one version, `id` or `id@version`."""
        request = datasets_pb2.GetDatasetVersionRequest(name=await self._version(name))
        return (await self._core.call(self._core.datasets.GetDatasetVersion, request)).version

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

    @stream
    async def rows(
        self,
        name: str,
        *,
        contains: str = "",
        base_model: str = "",
        prompt_template: str = "",
        max_length: int = 0,
        page_size: int = 20,
    ) -> AsyncGenerator[datasets_pb2.RowPreview, None]:
        """Yields rows of a version; with a base model as training sees them, with what is learnt marked.

        Raises FailedPrecondition when a base model is named and the server cannot render.
        """
        request = datasets_pb2.ListDatasetRowsRequest(
            parent=await self._version(name),
            page_size=page_size,
            contains=contains,
            base_model=base_model,
            prompt_template=prompt_template,
            max_length=max_length,
        )
        while True:
            seconds = 240.0 if base_model else None  # the first page starts the tokenizer
            page = await self._core.call(self._core.datasets.ListDatasetRows, request, seconds=seconds)
            if page.not_rendered:
                raise FailedPrecondition(
                    "RENDERING_MISSING", page.not_rendered, field="base_model", value=base_model,
                    remedy="leave the base model out to see the rows as they are",
                )  # fmt: skip
            for row in page.rows:
                yield row
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    @both
    async def statistics(
        self,
        name: str,
        *,
        base_model: str = "",
        prompt_template: str = "",
        max_length: int = 0,
        overlap_with: Sequence[str] = (),
        on_progress: Callable[[float], None] | None = None,
    ) -> statistics_pb2.DatasetStatistics:
        """Returns what is in a version, once it is computed. `on_progress` hears the share that is done.

        Raises FailedPrecondition when it cannot be computed.
        """
        request = statistics_pb2.GetDatasetStatisticsRequest(
            name=await self._version(name),
            base_model=base_model,
            prompt_template=prompt_template,
            max_length=max_length,
            overlap_with=overlap_with,
        )
        while True:
            answer = await self._core.call(self._core.statistics.GetDatasetStatistics, request)
            if on_progress is not None:
                on_progress(answer.progress)
            if answer.state == statistics_pb2.STATISTICS_STATE_READY:
                return answer.statistics
            if answer.state == statistics_pb2.STATISTICS_STATE_FAILED:
                raise FailedPrecondition("STATISTICS_FAILED", answer.error, field="name", value=name)
            await asyncio.sleep(_POLL_SECONDS)

    @both
    async def split(
        self, name: str, parts: Mapping[str, float], *, seed: int = 0, group_by: str = ""
    ) -> Sequence[datasets_pb2.DatasetVersion]:
        """Deals the rows out to several datasets by their weights; the same seed gives the same parts."""
        listed = [derivations_pb2.SplitPart(dataset_id=each, weight=share) for each, share in parts.items()]
        split = derivations_pb2.SplitOperation(dataset=name, parts=listed, seed=seed, group_by=group_by)
        return await self._derive(derivations_pb2.DeriveDatasetRequest(split=split))

    @both
    async def filter(
        self, name: str, dataset_id: str, expression: str, *, drop_duplicates: bool = False
    ) -> datasets_pb2.DatasetVersion:
        """Keeps the rows that fulfil a condition, such as `length(prompt) < 2000`."""
        wanted = derivations_pb2.FilterOperation(
            dataset=name, dataset_id=dataset_id, expression=expression, drop_duplicates=drop_duplicates
        )
        return (await self._derive(derivations_pb2.DeriveDatasetRequest(filter=wanted)))[0]

    @both
    async def sample(
        self, name: str, dataset_id: str, num_rows: int, *, seed: int = 0
    ) -> datasets_pb2.DatasetVersion:
        """Keeps some rows, chosen by the seed."""
        wanted = derivations_pb2.SampleOperation(
            dataset=name, dataset_id=dataset_id, num_rows=num_rows, seed=seed
        )
        return (await self._derive(derivations_pb2.DeriveDatasetRequest(sample=wanted)))[0]

    @both
    async def mix(
        self, parts: Mapping[str, float], dataset_id: str, *, num_rows: int = 0, seed: int = 0
    ) -> datasets_pb2.DatasetVersion:
        """Puts versions together by their weights, shuffled."""
        listed = [derivations_pb2.MixPart(dataset=each, weight=share) for each, share in parts.items()]
        wanted = derivations_pb2.MixOperation(
            parts=listed, dataset_id=dataset_id, num_rows=num_rows, seed=seed
        )
        return (await self._derive(derivations_pb2.DeriveDatasetRequest(mix=wanted)))[0]

    async def _derive(
        self, request: derivations_pb2.DeriveDatasetRequest
    ) -> Sequence[datasets_pb2.DatasetVersion]:
        request.parent, request.request_id = self._core.parent, new_request_id()
        answer = await self._core.call(self._core.derivations.DeriveDataset, request, seconds=60)
        return answer.versions

    @both
    async def export(self, name: str, to: str | Path, format: str = "jsonl") -> Path:
        """Writes a version into a file as `jsonl`, `csv` or `parquet`; a file that breaks off is not left."""
        request = datasets_pb2.ExportDatasetRequest(name=await self._version(name), format=format)
        target = Path(to)
        partial = target.with_name(f"{target.name}.part")
        try:
            with partial.open("wb") as file:
                async for piece in self._core.datasets.ExportDataset(request, metadata=self._core.metadata):
                    await asyncio.to_thread(file.write, piece.data)
            partial.replace(target)
        except OSError as error:
            raise unreadable(target, error) from None
        except grpc.RpcError as error:
            raise self._core.explain(error) from None
        finally:
            partial.unlink(missing_ok=True)
        return target

    async def _version(self, name: str) -> str:
        """Resource name of `id@version`, or of the newest version of `id`."""
        if "/versions/" in name:
            return name
        dataset, _, version = name.partition("@")
        resource = names.resource(self._core.project, "datasets", dataset)
        if not version:
            request = datasets_pb2.GetDatasetRequest(name=resource)
            found = (await self._core.call(self._core.datasets.GetDataset, request)).dataset
            return found.latest.name
        return f"{resource}/versions/{version}"


def _format(path: Path, given: str) -> datasets_pb2.DatasetFormat.ValueType:
    """The format named, or that of the file's name; else the server finds it out."""
    if given:
        known = datasets_pb2.DESCRIPTOR.enum_types_by_name["DatasetFormat"]
        return datasets_pb2.DatasetFormat.ValueType(names.number("format", known, given))
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _PACKED]
    return _FORMATS.get(suffixes[-1] if suffixes else "", datasets_pb2.DATASET_FORMAT_UNSPECIFIED)
