"""Rows of a version as they are and as training sees them."""

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import datasets_pb2 as pb
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.db import Database
from tunesmith_registry import store
from tunesmith_registry.data import content, prompts
from tunesmith_registry.data.rendering import Renderers, RenderingMissing, View

DEFAULT_MAX_LENGTH = 512
_MOST_JSON = 64 * 1024
# Rows looked at for one page of a filtered preview; behind them the next page goes on.
_MOST_LOOKED_AT = 2_000_000


class Previews:
    """Renders rows for previews."""

    def __init__(self, db: Database, blobs: BlobStore, renderers: Renderers) -> None:
        self._db, self._blobs, self._renderers = db, blobs, renderers

    async def view(
        self, project: str, base_model: str, template: str, max_length: int, template_digest: str = ""
    ) -> View:
        """How rows are seen with a base model and a prompt template, both by name.

        Raises:
            NotFound: there is no such base model or template.
        """

        def read(session: Session) -> View:
            base = store.base_model(session, project, base_model)
            digest = prompts.resolve(session, project, template).digest if template else template_digest
            return View(base.digest, digest, max_length or DEFAULT_MAX_LENGTH)

        return await self._db.read(read)

    def page(
        self, version: pb.DatasetVersion, offset: int, row: int, size: int, contains: str
    ) -> tuple[list[tuple[int, bytes]], tuple[int, int] | None]:
        """Rows from a place on, each with its number, and the place behind them; None at the end. Blocks.

        A place is the offset of a line and the number of its row.
        """
        found: list[tuple[int, bytes]] = []
        wanted = contains.casefold().encode()
        with content.lines(self._blobs, version) as source:
            source.seek(offset)
            looked_at = 0
            for line in source:
                if len(found) == size or looked_at == _MOST_LOOKED_AT:
                    return found, (offset, row)
                if not wanted or wanted in line.decode().casefold().encode():
                    found.append((row, line))
                offset, row, looked_at = offset + len(line), row + 1, looked_at + 1
        return found, None

    def render(self, view: View, rows: Sequence[tuple[int, dict[str, Any]]]) -> list[pb.RowPreview]:
        """Rows rendered; what cannot be rendered says why. Blocks."""
        try:
            seen = self._renderers.render(view, [row for _, row in rows], detail=True)
        except RenderingMissing as error:
            return [pb.RowPreview(row=number, error=str(error)) for number, _ in rows]
        return list(_previews(rows, seen))

    def rows(self, view: View | None, lines: Sequence[tuple[int, bytes]]) -> tuple[list[pb.RowPreview], str]:
        """Lines as previews, rendered with a view; and why they are not, if they are not. Blocks."""
        raw = [
            pb.RowPreview(row=number, json=line[:_MOST_JSON].decode(errors="ignore").rstrip("\n"))
            for number, line in lines
        ]
        if view is None or not lines:
            return raw, ""
        parsed = [(number, orjson.loads(line)) for number, line in lines]
        try:
            seen = self._renderers.render(view, [row for _, row in parsed], detail=True)
        except RenderingMissing as error:
            return raw, str(error)
        for one, rendered in zip(raw, _previews(parsed, seen), strict=True):
            one.MergeFrom(rendered)
        return raw, ""


def _previews(
    rows: Sequence[tuple[int, dict[str, Any]]], seen: list[dict[str, Any]]
) -> Iterator[pb.RowPreview]:
    for (number, _), item in zip(rows, seen, strict=True):
        if "error" in item:
            yield pb.RowPreview(row=number, error=item["error"])
            continue
        yield pb.RowPreview(
            row=number,
            segments=[pb.Segment(text=part["text"], trained=part["trained"]) for part in item["segments"]],
            num_tokens=item["tokens"],
            num_trained_tokens=item["trained"],
            truncated=item["truncated"],
        )
