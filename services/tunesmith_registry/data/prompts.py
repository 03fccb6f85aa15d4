"""Prompt templates in the database: find, list, enter, and compare with the columns of data."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import datasets_pb2, events_pb2
from tunesmith.api.registry.v1 import prompts_pb2 as pb
from tunesmith.errors import FailedPrecondition, InvalidArgument, NotFound
from tunesmith_kit import manifest, subjects
from tunesmith_kit.blobs import BlobStore
from tunesmith_kit.ids import new_ulid
from tunesmith_kit.manifest import ManifestFile
from tunesmith_registry.change import Caller, say
from tunesmith_registry.data.content import CONVERSATION
from tunesmith_registry.data.rows import MESSAGES, TRAINABLE
from tunesmith_registry.data.tables import PROMPT_VERSIONS, PROMPTS
from tunesmith_registry.store import did_you_mean, version_number

FILE = "template.json"
_MOST_HINTS = 20


def stored(store: BlobStore, parts: pb.PromptParts, variables: Sequence[str]) -> pb.PromptTemplate:
    """Stores the parts of a template as an artifact, in canonical form. Blocks."""
    body = {"completion": parts.completion, "prompt": parts.prompt, "system": parts.system}
    data = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    blob = store.put_bytes(data)
    made = manifest.create("prompt", [ManifestFile(FILE, blob.size_bytes, blob.digest)])
    digest = store.put_bytes(made.canonical()).digest
    return pb.PromptTemplate(digest=digest, parts=parts, variables=variables)


def row_of(session: Session, project: str, prompt_id: str) -> Row[Any]:
    """Returns a template's row; `NotFound` with ids that look alike."""
    query = select(PROMPTS).where(PROMPTS.c.project == project, PROMPTS.c.id == prompt_id)
    row = session.execute(query).one_or_none()
    if row is None:
        hint = did_you_mean(session, PROMPTS, project, prompt_id)
        raise NotFound(
            "PROMPT_NOT_FOUND",
            f"there is no prompt template {prompt_id}",
            field="prompt_template",
            value=prompt_id,
            remedy=f"{hint}`tunesmith prompts list` lists them",
        )
    return row


def version_of(session: Session, row: Row[Any], version: int) -> pb.PromptTemplate:
    """Returns one version of a template; `NotFound` when it has no such version."""
    of = PROMPT_VERSIONS.c
    query = select(of.body).where(of.project == row.project, of.prompt_id == row.id, of.version == version)
    body = session.execute(query).scalar_one_or_none()
    if body is None:
        raise NotFound(
            "PROMPT_NOT_FOUND",
            f"the prompt template {row.id} has no version {version}",
            field="prompt_template",
            value=f"{row.id}@{version}",
            remedy=f"its newest version is {row.latest_version}",
        )
    return pb.PromptTemplate.FromString(body)


def resolve(session: Session, project: str, wanted: str) -> pb.PromptTemplate:
    """Returns the version that `id` or `id@version` means."""
    prompt_id, _, version = wanted.partition("@")
    row = row_of(session, project, prompt_id)
    return version_of(session, row, version_number(version) if version else row.latest_version)


def enter(
    session: Session, caller: Caller, project: str, prompt_id: str, description: str, made: pb.PromptTemplate
) -> pb.PromptTemplate:
    """Enters a stored template as the next version, or returns the version that has the same parts."""
    of = PROMPT_VERSIONS.c
    row = session.execute(
        select(PROMPTS).where(PROMPTS.c.project == project, PROMPTS.c.id == prompt_id)
    ).one_or_none()
    same = select(of.body).where(of.project == project, of.prompt_id == prompt_id, of.digest == made.digest)
    known = session.execute(same).scalar_one_or_none()
    if known is not None:
        return pb.PromptTemplate.FromString(known)
    version = row.latest_version + 1 if row else 1
    uid = row.uid if row else new_ulid()
    if row is None:
        session.execute(
            insert(PROMPTS).values(
                project=project, id=prompt_id, uid=uid, latest_version=1, create_time=caller.now
            )
        )
    else:
        this = (PROMPTS.c.project == project) & (PROMPTS.c.id == prompt_id)
        session.execute(update(PROMPTS).where(this).values(latest_version=version))
    body = pb.PromptTemplate()
    body.CopyFrom(made)
    body.name = f"projects/{project}/prompts/{prompt_id}/versions/{version}"
    body.prompt_id, body.version, body.description = prompt_id, version, description
    body.creator = caller.actor
    body.create_time.FromDatetime(caller.now)
    session.execute(
        insert(PROMPT_VERSIONS).values(
            project=project, prompt_id=prompt_id, version=version, digest=made.digest,
            body=body.SerializeToString(),
        )
    )  # fmt: skip
    event = events_pb2.PromptTemplateCreated(prompt_template=body)
    subject = subjects.event(project, "prompt", uid, "version_created")
    say(session, caller, subject, "prompt_template_created", event, resource=body.name)
    return body


def columns_of(version: datasets_pb2.DatasetVersion) -> list[str]:
    """The names a template may read of a version's rows; empty when they are not known."""
    if version.row_format == MESSAGES:
        return list(CONVERSATION)
    return list(version.columns)


def compare(
    variables: Iterable[str], columns: Sequence[str], row_format: str = ""
) -> tuple[list[str], list[str]]:
    """Variables that no column has, and columns that no variable reads."""
    read = set(variables)
    unused = [] if row_format == MESSAGES else [name for name in columns if name not in read]
    return sorted(read - set(columns)), unused


def check_columns(template: pb.PromptTemplate, version: datasets_pb2.DatasetVersion) -> list[str]:
    """Returns the columns no part reads.

    Raises:
        InvalidArgument: the template reads what the rows do not have.
    """
    columns = columns_of(version)
    if not columns:  # imported before columns were noted
        return []
    missing, unused = compare(template.variables, columns, version.row_format)
    if missing:
        raise InvalidArgument(
            "TEMPLATE_COLUMNS",
            f"the prompt template reads {', '.join(missing)}, which the rows do not have",
            field="prompt_template",
            value=", ".join(missing[:_MOST_HINTS]),
            remedy=f"the rows have {', '.join(columns[:_MOST_HINTS])}; correct the template or the data",
        )
    return unused


def check_inputs(
    session: Session, project: str, wanted: str, version: datasets_pb2.DatasetVersion, trains: bool = True
) -> pb.PromptTemplate | None:
    """The template a job uses, pinned and compared with its rows; None when it needs and names none.

    Raises:
        NotFound: there is no such template.
        InvalidArgument: it does not fit the rows.
        FailedPrecondition: rows of this shape need one.
    """
    if not wanted:
        if version.row_format in TRAINABLE:
            return None
        raise FailedPrecondition(
            "TEMPLATE_MISSING",
            f"rows of the shape {version.row_format} need a prompt template to become conversations",
            field="prompt_template",
            value=version.name,
            remedy="make one (`tunesmith prompts create`) and name it as prompt_template in the job",
        )
    template = resolve(session, project, wanted)
    check_columns(template, version)
    if trains and version.row_format != MESSAGES and not template.parts.completion:
        raise InvalidArgument(
            "TEMPLATE_INCOMPLETE",
            "the prompt template has no completion, so there is nothing to learn",
            field="prompt_template",
            value=wanted,
            remedy="give it a completion that writes the answer",
        )
    return template
