"""Names for versions that people may move: `bot@champion`."""

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from tunesmith.api.registry.v1 import events_pb2, models_pb2
from tunesmith.errors import FailedPrecondition, InvalidArgument, NotFound
from tunesmith_kit import subjects
from tunesmith_registry import versions
from tunesmith_registry.change import Caller, say
from tunesmith_registry.tables import MODEL_ALIASES

# They stand for something already.
RESERVED = ("production", "staging", "archived", "none", "latest")


def number_of(session: Session, project: str, model_id: str, alias: str) -> int:
    """The number of the version an alias names; 0 when there is no such alias."""
    return of_model(session, project, model_id).get(alias, 0)


def of_model(session: Session, project: str, model_id: str) -> dict[str, int]:
    """The numbers of versions by alias."""
    of = MODEL_ALIASES.c
    query = select(of.alias, of.version).where(of.project == project, of.model_id == model_id)
    return {row.alias: row.version for row in session.execute(query.order_by(of.alias))}


def named(session: Session, project: str, found: list[models_pb2.ModelVersion]) -> None:
    """Fills the aliases of versions of one model in."""
    if not found:
        return
    model_id = found[0].name.split("/")[3]
    known = of_model(session, project, model_id)
    for version in found:
        del version.aliases[:]
        version.aliases.extend(alias for alias, number in known.items() if number == version.version)


def expect(session: Session, project: str, model_id: str, alias: str, seen: str, wanted: int = 0) -> None:
    """Makes sure that an alias names what a caller saw (a number, or `none`; empty: anything), unless it
    names already what it should.

    Raises:
        FailedPrecondition: it was moved since.
    """
    number = number_of(session, project, model_id, alias)
    if not seen or number == wanted or (str(number) if number else "none") == seen:
        return
    now = f"names version {number} by now" if number else "was taken away"
    raise FailedPrecondition(
        "REVISION_STALE",
        f"the alias {alias} {now}",
        field="expected_version",
        value=seen,
        remedy="look at the model again and repeat the change",
    )


def point(
    session: Session, caller: Caller, project: str, model_id: str, alias: str, wanted: models_pb2.ModelVersion
) -> None:
    """Lets an alias name a version.

    Raises:
        InvalidArgument: the word stands for something else.
    """
    if alias in RESERVED:
        raise InvalidArgument(
            "FIELD_INVALID",
            f"{alias} names a stage or the newest version",
            field="alias",
            value=alias,
            remedy="choose another word, for example `champion`",
        )
    before = number_of(session, project, model_id, alias)
    if before == wanted.version:
        return
    _take_away(session, project, model_id, alias)
    session.execute(
        insert(MODEL_ALIASES).values(
            project=project,
            model_id=model_id,
            alias=alias,
            version=wanted.version,
            update_time=caller.now,
        )
    )
    _say(session, caller, project, model_id, alias, wanted.version, before)


def end(session: Session, caller: Caller, project: str, model_id: str, alias: str) -> int:
    """Takes an alias away and returns the number of the version it named.

    Raises:
        NotFound: there is no such alias.
    """
    before = number_of(session, project, model_id, alias)
    if not before:
        known = ", ".join(of_model(session, project, model_id)) or "none"
        raise NotFound(
            "MODEL_NOT_FOUND",
            f"the model {model_id} has no alias {alias}",
            field="alias",
            value=alias,
            remedy=f"its aliases: {known}",
        )
    _take_away(session, project, model_id, alias)
    _say(session, caller, project, model_id, alias, 0, before)
    return before


def _take_away(session: Session, project: str, model_id: str, alias: str) -> None:
    of = MODEL_ALIASES.c
    session.execute(
        delete(MODEL_ALIASES).where(of.project == project, of.model_id == model_id, of.alias == alias)
    )


def _say(
    session: Session, caller: Caller, project: str, model_id: str, alias: str, now: int, before: int
) -> None:
    row = versions.model_row(session, project, model_id)
    name = f"projects/{project}/models/{model_id}"
    event = events_pb2.ModelAliasChanged(
        model=name,
        alias=alias,
        version=f"{name}/versions/{now}" if now else "",
        previous_version=f"{name}/versions/{before}" if before else "",
    )
    subject = subjects.event(project, "model", row.uid, "alias_changed")
    say(session, caller, subject, "model_alias_changed", event, resource=name)
