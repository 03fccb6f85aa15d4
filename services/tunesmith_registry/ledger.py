"""Receipts: what happened in a project, each linked to the one before it by digest.

A receipt is written in the transaction of the event it proves, so none can be missing. It is signed a moment
later (`governance/sealing.py`): the private key is never needed inside a transaction.
"""

import hashlib
import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import events_pb2
from tunesmith_registry.tables import RECEIPTS

FIRST = "0" * 64
# Everything that makes, moves, judges or removes something.
KINDS = frozenset(
    {
        "dataset_version_created",
        "prompt_template_created",
        "base_model_imported",
        "base_model_updated",
        "base_model_deleted",
        "model_version_registered",
        "model_version_updated",
        "model_version_deleted",
        "model_version_stage_changed",
        "model_alias_changed",
        "model_policy_changed",
        "card_sections_edited",
        "promotion_requested",
        "promotion_decided",
        "evaluation_completed",
    }
)
# A digest stands for them.
_LEFT_OUT = ("manifest", "report")
_DEEPEST = 8


def append(session: Session, kind: str, envelope: events_pb2.RegistryEvent) -> None:
    """Adds the receipt of an event, if it is of a kind that has one. The revision's row is locked by now, so
    receipts commit in their order."""
    if kind not in KINDS:
        return
    resource, facts = _facts(getattr(envelope, kind), envelope.resource)
    project = resource.split("/")[1]
    of = RECEIPTS.c
    query = select(of.sequence, of.digest).where(of.project == project)
    last = session.execute(query.order_by(of.sequence.desc()).limit(1)).one_or_none()
    body = {
        "actor": envelope.actor,
        "event": facts,
        "kind": kind,
        "previous": last.digest if last else FIRST,
        "project": project,
        "resource": resource,
        "revision": envelope.revision,
        "sequence": last.sequence + 1 if last else 1,
        "time": envelope.time.ToJsonString(),
    }
    text = canonical(body)
    session.execute(
        insert(RECEIPTS).values(
            project=project,
            sequence=body["sequence"],
            kind=kind,
            resource=resource,
            body=text,
            digest=digest_of(text),
            signature="",
            key_id="",
        )
    )


def canonical(value: Any) -> str:
    """JSON with sorted keys and no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(text: str) -> str:
    """SHA-256 of a receipt's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _facts(event: Message, resource: str) -> tuple[str, dict[str, Any]]:
    """What a receipt is about, and the event as JSON without what digests stand for."""
    made: Any = getattr(event, "version", None) or getattr(event, "evaluation", None)
    # Of an alias the version is a name already, and the model is what it is about.
    name: str = getattr(made, "name", "") or resource
    facts: dict[str, Any] = MessageToDict(event, preserving_proto_field_name=True)
    _strip(facts, _DEEPEST)
    return name, facts


def _strip(value: Any, depth: int) -> None:
    if isinstance(value, dict) and depth:
        for key in _LEFT_OUT:
            value.pop(key, None)
        for child in value.values():
            _strip(child, depth - 1)
    elif isinstance(value, list) and depth:
        for child in value:
            _strip(child, depth - 1)
