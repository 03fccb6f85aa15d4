"""What people wrote for the cards of a model."""

import hashlib

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import cards_pb2, events_pb2
from tunesmith.errors import Aborted, InvalidArgument
from tunesmith_kit import subjects
from tunesmith_registry import versions
from tunesmith_registry.change import Caller, say
from tunesmith_registry.governance.tables import CARD_SECTIONS

_TEXTS = ("summary", "intended_use", "limitations", "license")
_LISTS = ("tags", "languages", "tasks")


def read(session: Session, project: str, model_id: str) -> cards_pb2.CardSections:
    """Returns the sections of a model; empty ones when nobody wrote any."""
    of = CARD_SECTIONS.c
    query = select(of.body).where(of.project == project, of.model_id == model_id)
    body = session.execute(query).scalar_one_or_none()
    if body is not None:
        return cards_pb2.CardSections.FromString(body)
    return _stamped(cards_pb2.CardSections(name=f"projects/{project}/models/{model_id}"))


def edit(
    session: Session,
    caller: Caller,
    project: str,
    model_id: str,
    request: cards_pb2.UpdateCardSectionsRequest,
) -> cards_pb2.CardSections:
    """Changes sections.

    Raises:
        Aborted: they changed since the etag.
        InvalidArgument: a list to empty is none.
    """
    row = versions.model_row(session, project, model_id)
    now = read(session, project, model_id)
    if request.etag and request.etag != now.etag:
        raise Aborted(
            "REVISION_CONFLICT",
            f"{now.editor or 'somebody'} edited the card meanwhile",
            field="etag",
            value=request.etag,
            remedy="read the card again and repeat the edit",
        )
    for name in _TEXTS:
        if request.HasField(name):  # type: ignore[arg-type]
            setattr(now, name, getattr(request, name))
    for name in request.clear:
        if name not in _LISTS:
            raise InvalidArgument(
                "FIELD_INVALID",
                f"{name} is no list of a card",
                field="clear",
                value=name,
                remedy=f"use {', '.join(_LISTS)}",
            )
        now.ClearField(name)  # type: ignore[arg-type]
    for name in _LISTS:
        if given := sorted({item.strip() for item in getattr(request, name)} - {""}):
            now.ClearField(name)  # type: ignore[arg-type]
            getattr(now, name).extend(given)
    now.update_time.FromDatetime(caller.now)
    now.editor = caller.actor
    _stamped(now)
    of = CARD_SECTIONS.c
    session.execute(delete(CARD_SECTIONS).where(of.project == project, of.model_id == model_id))
    session.execute(
        insert(CARD_SECTIONS).values(
            project=project, model_id=model_id, etag=now.etag, body=now.SerializeToString()
        )
    )
    subject = subjects.event(project, "model", row.uid, "card_sections_edited")
    event = events_pb2.CardSectionsEdited(sections=now)
    say(session, caller, subject, "card_sections_edited", event, resource=now.name)
    return now


def _stamped(sections: cards_pb2.CardSections) -> cards_pb2.CardSections:
    sections.etag = ""
    content = sections.SerializeToString(deterministic=True)
    sections.etag = hashlib.sha256(content).hexdigest()[:16]
    return sections
